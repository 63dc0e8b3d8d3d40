"""Build any of the built-in models in JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

from noa_training.models.cnn import Cnn
from noa_training.models.decoder_lm import DecoderLm
from noa_training.models.jax.cnn import cnn
from noa_training.models.jax.decoder_lm import decoder_lm
from noa_training.models.jax.mlp import mlp
from noa_training.models.jax.recurrent import recurrent
from noa_training.models.jax.resnet import resnet
from noa_training.models.jax.tabular_resnet import tabular_resnet
from noa_training.models.jax.transformer_encoder import transformer_encoder
from noa_training.models.jax.vision_transformer import vit
from noa_training.models.library import BuiltIn
from noa_training.models.mlp import Mlp
from noa_training.models.recurrent import Recurrent
from noa_training.models.resnet import ResNet
from noa_training.models.tabular_resnet import TabularResNet
from noa_training.models.transformer_encoder import TransformerEncoder
from noa_training.models.vision_transformer import Vit


def build_jax(model: BuiltIn) -> Callable[..., jax.Array]:
    """Return `apply(weights, *inputs, run)`; `run` says whether it trains, and takes up what changes (see `Pass`)."""
    match model:
        case Mlp():
            return partial(mlp, model)
        case Cnn():
            return partial(cnn, model)
        case ResNet():
            return partial(resnet, model)
        case TabularResNet():
            return partial(tabular_resnet, model)
        case Recurrent():
            return partial(recurrent, model)
        case TransformerEncoder():
            return partial(transformer_encoder, model)
        case Vit():
            return partial(vit, model)
        case DecoderLm():
            return partial(decoder_lm, model)
