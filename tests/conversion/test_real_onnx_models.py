"""ONNX files of wheels on PyPI, as other people's exporters wrote them, against onnxruntime; more by `real_models`."""

from __future__ import annotations

import pytest
from benchmarks.conformance.model_runs import measure
from benchmarks.conformance.real_models import MODELS, RealModel, find_model, request_for

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
