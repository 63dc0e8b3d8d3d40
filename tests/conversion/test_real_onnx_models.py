"""ONNX files of wheels on PyPI, as other people's exporters wrote them, against onnxruntime; more by `real_models`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.conformance.model_runs import measure
from benchmarks.conformance.real_models import MODELS, RealModel, find_model, request_for

from samples import mostly

SMALL = {
    model.name: model
    for model in MODELS
    if model.name
    in {
        "magika/model.onnx",
        "onnx/light_squeezenet.onnx",
        "silero-vad/silero_vad_half.onnx",
        "silero-vad/silero_vad_openvino_16k.onnx",
        "silero-vad/silero_vad_16k_sequence.onnx",
    }
}


@pytest.fixture(params=sorted(SMALL))
def model(request: pytest.FixtureRequest) -> RealModel:
    return SMALL[request.param]


@pytest.mark.parametrize(("target", "mode"), [("torch", "eager"), ("jax", "compiled")])
@pytest.mark.filterwarnings("default")
def test_a_real_file_computes_what_onnxruntime_computes(model: RealModel, target: str, mode: str) -> None:
    path = find_model(model, download=False)
    assert path is not None, f"`{model.package}` is part of noa[dev]"
    found = measure(request_for(model, path, target, mode=mode))
    assert found["category"] == "pass", found["reason"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_real_file_runs_under_torch_compile() -> None:
    model = SMALL["magika/model.onnx"]
    path = find_model(model, download=False)
    assert path is not None
    found = measure(request_for(model, path, "torch", mode="compiled"))
    assert (found["category"], found["axes"]) == ("pass", "free"), found["reason"]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("rate", "window", "misfit"),
    mostly("conformance", [(16000, 576, 8000), (8000, 288, None)], sample=[(16000, 576, 8000)]),
)
def test_a_file_with_a_branch_that_its_inputs_never_fit_compiles_with_the_choice_as_an_input(
    rate: int, window: int, misfit: int | None
) -> None:
    import onnxruntime
    import torch

    from noa_conversion import import_onnx_to_torch

    path = find_model(next(each for each in MODELS if each.name == "silero-vad/silero_vad.onnx"), download=False)
    assert path is not None
    sound = np.random.default_rng(0).standard_normal((2, window)).astype(np.float32) / 10
    feed: dict[str, Any] = {"input": sound, "state": np.zeros((2, 2, 128), np.float32), "sr": np.asarray(rate)}
    module = import_onnx_to_torch(path, sizes={"batch": 2, "input_1": window, "state_1": 2}).module
    compiled = torch.compile(module)
    expected: Any = onnxruntime.InferenceSession(path).run(None, feed)
    tensors = [torch.from_numpy(array) for array in feed.values()]
    for run in (module, compiled):
        with torch.no_grad():
            given: Any = run(*tensors)
        for gift, wish in zip(given, expected, strict=True):
            np.testing.assert_allclose(gift.numpy(), wish, rtol=1e-3, atol=1e-5)
        if misfit is not None:
            with pytest.raises(RuntimeError, match=r"takes its else branch.*do not fit.*3 axes"), torch.no_grad():
                run(*tensors[:-1], torch.tensor(misfit))
