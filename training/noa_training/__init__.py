"""The training room: recipes, two backends that agree, and jobs that continue after `kill -9`.

A project's `recipe.py` needs `Recipe`, `Dataset`, `Split`, a model, the optimizers and schedules; other rooms need
`JobRequest`, `run_job`, `load_trained` and `evaluate`. Nothing here imports a framework before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noa_training.datasets import Dataset, Objective, Split, SplitName
from noa_training.events import (
    CheckpointWritten,
    EarlyStopped,
    Epoch,
    Failed,
    Finished,
    JobEvent,
    Resumed,
    Started,
    Step,
    Warned,
    parse_event,
)
from noa_training.metric_names import is_larger_better, metrics_of
from noa_training.model_specs import BACKENDS, BackendName, Factories, ModelShape
from noa_training.models.cnn import Cnn, cnn
from noa_training.models.decoder_lm import DecoderLm, decoder_lm
from noa_training.models.library import MODELS, ModelSpec
from noa_training.models.mlp import Mlp, mlp
from noa_training.models.recurrent import Recurrent, gru, lstm
from noa_training.models.resnet import ResNet, resnet
from noa_training.models.tabular_resnet import TabularResNet, tabular_resnet
from noa_training.models.transformer_encoder import TransformerEncoder, transformer_encoder
from noa_training.models.vision_transformer import Vit, vit
from noa_training.recipes import SGD, AdamW, Constant, EarlyStopping, Recipe, WarmupCosine

if TYPE_CHECKING:
    from noa_training.evaluation import evaluate
    from noa_training.job_folder import JobState, read_state
    from noa_training.jobs import finished_job, load_dataset, load_result, load_trained, recipe_of, run_job
    from noa_training.loading import load_recipe
    from noa_training.loop import JobCancelledError
    from noa_training.measurement import Measurement, measure
    from noa_training.models.weights import state_dict_from_tree, tree_from_state_dict
    from noa_training.requests import JobRequest, TrainedJob, WorkerRequest

# These need numpy, pydantic or psutil; a recipe file and `noa --help` do not.
_LAZY = {
    "JobCancelledError": "loop",
    "JobRequest": "requests",
    "JobState": "job_folder",
    "Measurement": "measurement",
    "TrainedJob": "requests",
    "WorkerRequest": "requests",
    "evaluate": "evaluation",
    "finished_job": "jobs",
    "load_dataset": "jobs",
    "load_recipe": "loading",
    "load_result": "jobs",
    "load_trained": "jobs",
    "measure": "measurement",
    "read_state": "job_folder",
    "recipe_of": "jobs",
    "run_job": "jobs",
    "state_dict_from_tree": "models.weights",
    "tree_from_state_dict": "models.weights",
}

__all__ = [
    "BACKENDS",
    "MODELS",
    "SGD",
    "AdamW",
    "BackendName",
    "CheckpointWritten",
    "Cnn",
    "Constant",
    "Dataset",
    "DecoderLm",
    "EarlyStopped",
    "EarlyStopping",
    "Epoch",
    "Factories",
    "Failed",
    "Finished",
    "JobCancelledError",
    "JobEvent",
    "JobRequest",
    "JobState",
    "Measurement",
    "Mlp",
    "ModelShape",
    "ModelSpec",
    "Objective",
    "Recipe",
    "Recurrent",
    "ResNet",
    "Resumed",
    "Split",
    "SplitName",
    "Started",
    "Step",
    "TabularResNet",
    "TrainedJob",
    "TransformerEncoder",
    "Vit",
    "WarmupCosine",
    "Warned",
    "WorkerRequest",
    "cnn",
    "decoder_lm",
    "evaluate",
    "finished_job",
    "gru",
    "is_larger_better",
    "load_dataset",
    "load_recipe",
    "load_result",
    "load_trained",
    "lstm",
    "measure",
    "metrics_of",
    "mlp",
    "parse_event",
    "read_state",
    "recipe_of",
    "resnet",
    "run_job",
    "state_dict_from_tree",
    "tabular_resnet",
    "transformer_encoder",
    "tree_from_state_dict",
    "vit",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from importlib import import_module

    return getattr(import_module(f"noa_training.{_LAZY[name]}"), name)
