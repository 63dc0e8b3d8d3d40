"""Reduced formats: what changed is counted, what did not is refused, and the numbers stay within the statement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graph_kit as graphs
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from noa.errors import ConversionError, InvalidInputError
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion import ModelFiles, compare_models, convert_folder, find_converters, load_format, open_model
from noa_conversion.optimise.child import StepLimits, run_step
from noa_conversion.optimise.linear_onnx import split_gemms
from noa_conversion.optimise.pareto import Measured, mark_front, metric_drop

SETTINGS = ConversionSettings()
FLOAT = TensorProto.FLOAT
REDUCED = ("onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int8-static", "onnx-int4")
CHANGED = {
    "onnx-slim": "nodes_after",
    "onnx-fp16": "float16_weights",
    "onnx-bf16": "bfloat16_weights",
    "onnx-int8": "quantised_nodes",
    "onnx-int8-static": "quantised_nodes",
    "onnx-int4": "packed_nodes",
}


def network(*, wide: int = 64, transposed: bool = True) -> onnx.ModelProto:
    """Two linear layers as exporters write them: `Gemm` with a transposed weight."""
    rng = np.random.default_rng(0)
    first = (rng.normal(size=(32, wide)) / np.sqrt(32)).astype(np.float32)
    second = (rng.normal(size=(wide, 8)) / np.sqrt(wide)).astype(np.float32)
    turn = (lambda array: np.ascontiguousarray(array.T)) if transposed else (lambda array: array)
    weights = {
        "0.weight": turn(first),
        "0.bias": rng.normal(size=wide).astype(np.float32),
        "2.weight": turn(second),
        "2.bias": rng.normal(size=8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], name="nothing"),
        helper.make_node("Gemm", ["same", "0.weight", "0.bias"], ["a"], name="0", transB=int(transposed)),
        helper.make_node("Relu", ["a"], ["b"], name="1"),
        helper.make_node(
            "Gemm", ["b", "2.weight", "2.bias"], ["y"], name="2", transB=int(transposed), alpha=0.5, beta=2.0
        ),
    ]
    return graphs.model(
        nodes, [graphs.value("x", FLOAT, ["batch", 32])], [graphs.value("y", FLOAT, ["batch", 8])], weights
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("optimise")
    path = graphs.save(network(), root / "net.onnx")
    folder = root / "onnx"
    with open_model(path) as opened:
        folder.mkdir()
        for file in opened.folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)}


@pytest.mark.parametrize("name", CHANGED)
def test_a_step_changes_what_it_says_and_stays_within_its_tolerance(name: str, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    convert_folder("onnx", source, name, folder, settings=SETTINGS, samples=rows(64))
    change = json.loads((folder / "change.json").read_text())
    assert change["step"] == name and change["counts"][CHANGED[name]] > 0
    if name != "onnx-slim":
        assert change["counts"][CHANGED[name]] >= 2  # both layers, although they are `Gemm`
    assert Signature.load(folder) == Signature.load(source)
    report = compare_models(
        ModelFiles(format="onnx", folder=source, label="onnx"),
        ModelFiles(format=name, folder=folder, label=name),
        inputs=rows(33, seed=1),
        settings=SETTINGS,
        allow=find_converters()["onnx", name].allow,
    )
    assert report.passed, report.differences
    if name in REDUCED and name != "onnx-fp16":
        assert any(difference.max_abs_error > 0 for difference in report.differences)  # it really is reduced


@pytest.mark.parametrize(("name", "share"), [("onnx-int4", 0.25), ("onnx-bf16", 0.6), ("onnx-fp16", 0.6)])
def test_reduced_files_are_smaller(name: str, share: float, tmp_path: Path) -> None:
    path = graphs.save(network(wide=1024), tmp_path / "net.onnx")
    with open_model(path) as opened:
        convert_folder("onnx", opened.folder, name, tmp_path / name, settings=SETTINGS)
    assert (tmp_path / name / "model.onnx").stat().st_size < share * path.stat().st_size


@pytest.mark.parametrize("name", ["onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int8-static", "onnx-int4"])
def test_a_step_that_changes_nothing_is_refused(name: str, tmp_path: Path) -> None:
    proto = graphs.model(
        [helper.make_node("Relu", ["x"], ["y"], name="only")],
        [graphs.value("x", FLOAT, ["batch", 32])],
        [graphs.value("y", FLOAT, ["batch", 32])],
    )
    refused = pytest.raises(ConversionError, match=rf"`{name}` changed nothing")
    with open_model(graphs.save(proto, tmp_path / "a.onnx")) as opened, refused:
        convert_folder("onnx", opened.folder, name, tmp_path / "out", settings=SETTINGS, samples=rows(4))
    assert not (tmp_path / "out").exists()


def test_static_int8_wants_real_inputs(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"real inputs.*--input FILE"):
        convert_folder("onnx", source, "onnx-int8-static", tmp_path / "out", settings=SETTINGS)


def test_a_weight_that_float16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    proto = network()
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "0.bias")
    large = onnx.numpy_helper.to_array(tensor).copy()
    large[0] = 1e6
    tensor.CopyFrom(onnx.numpy_helper.from_array(large, tensor.name))
    refused = pytest.raises(ConversionError, match=r"`0\.bias` is too large for float16.*onnx-bf16")
    with open_model(graphs.save(proto, tmp_path / "a.onnx")) as opened, refused:
        convert_folder("onnx", opened.folder, "onnx-fp16", tmp_path / "out", settings=SETTINGS)


@pytest.mark.parametrize("transposed", [True, False])
def test_splitting_gemm_keeps_the_numbers(transposed: bool, tmp_path: Path) -> None:
    proto = network(transposed=transposed)
    with open_model(graphs.save(proto, tmp_path / "a.onnx")) as before:
        changed = onnx.ModelProto.FromString(proto.SerializeToString())
        assert split_gemms(changed) == 2
        assert not any(node.op_type == "Gemm" for node in changed.graph.node)
        with open_model(graphs.save(changed, tmp_path / "b.onnx")) as after:
            assert compare_models(before, after, settings=SETTINGS).passed


def test_a_weight_that_two_layers_share_is_split_for_each(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="first", transB=1),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="second"),
    ]
    proto = graphs.model(
        nodes, [graphs.value("x", FLOAT, ["batch", 4])], [graphs.value("y", FLOAT, ["batch", 4])], {"w": weight}
    )
    with open_model(graphs.save(proto, tmp_path / "a.onnx")) as before:
        assert split_gemms(proto) == 2
        with open_model(graphs.save(proto, tmp_path / "b.onnx")) as after:
            assert compare_models(before, after, settings=SETTINGS).passed


def test_what_lost_precision_is_no_way_station(source: Path) -> None:
    from noa_conversion import conversion_chain

    assert [step.target for step in conversion_chain("torch", "onnx-int8")] == ["onnx", "onnx-int8"]
    with pytest.raises(ConversionError):
        conversion_chain("onnx-int8", "torch")


def test_reduced_formats_load_under_their_names(source: Path, tmp_path: Path) -> None:
    convert_folder("onnx", source, "onnx-int8", tmp_path / "out", settings=SETTINGS)
    runnable = load_format("onnx-int8", tmp_path / "out", threads=1)
    assert runnable.run(rows(3))["y"].shape == (3, 8)


def test_a_step_that_takes_too_long_or_too_much_ends_with_its_process(source: Path, tmp_path: Path) -> None:
    for limits, message in (
        (StepLimits(seconds=0.05), "was not done in 0.05 seconds"),
        (StepLimits(memory_bytes=64 << 20), "at most 64 MiB"),
    ):
        folder = tmp_path / message.replace(" ", "-")
        folder.mkdir()
        with pytest.raises(ConversionError, match=message):
            run_step("onnx-fp16", source, folder, limits=limits)


def _measured(name: str, size: int, latency: float, metric: float, **more: Any) -> Measured:
    return Measured(format=name, size_bytes=size, latency_ms={1: latency}, metric=metric, metrics={}, **more)


def test_the_front_holds_what_no_other_beats() -> None:
    found = mark_front(
        [
            _measured("onnx", 100, 1.0, 0.99),
            _measured("smaller", 50, 1.0, 0.99),
            _measured("faster", 60, 0.5, 0.98),
            _measured("worse", 60, 1.2, 0.97),
            _measured("refused", 1, 0.1, 0.99, problem="outside its stated tolerance"),
        ],
        larger_is_better=True,
    )
    assert [one.format for one in found if one.on_front] == ["smaller", "faster"]


def test_a_latency_within_the_noise_beats_nobody() -> None:
    found = mark_front([_measured("a", 100, 1.00, 0.9), _measured("b", 100, 1.02, 0.9)], larger_is_better=True)
    assert all(one.on_front for one in found)


def test_of_a_format_that_is_beaten_is_said_by_which_and_in_what() -> None:
    """`b` is slower in the table, by less than the noise, and smaller: it beats `a`, which only the rule explains."""
    found = mark_front(
        [
            _measured("a", 1100, 1.00, 0.9),
            _measured("b", 1000, 1.02, 0.9),
            _measured("c", 1000, 2.00, 0.8),
            _measured("refused", 1, 0.1, 0.99, problem="outside its stated tolerance"),
        ],
        larger_is_better=True,
    )
    assert [one.format for one in found if one.on_front] == ["b"]
    assert (found[0].beaten_by, found[0].beaten_in) == ("b", ("100 bytes smaller",))
    assert found[2].beaten_by == "b"
    assert found[2].beaten_in == ("the metric better by 0.1", "49% faster at batch 1")
    assert (found[1].beaten_by, found[3].beaten_by) == (None, None)
    assert found[0].to_dict()["beaten_by"] == "b"


def test_names_in_the_picture_do_not_cover_each_other() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation, Text

    from noa_conversion.optimise.pareto_plot import PlotTitle, draw_figure

    names = ("onnx", "onnx-slim", "onnx-fp16", "onnx-bf16", "onnx-int8", "onnx-int8-static", "onnx-int4")
    shown = mark_front(
        [_measured(name, 100_000 + i, 0.1 + i / 1e4, 0.99) for i, name in enumerate(names)], larger_is_better=True
    )
    title = PlotTitle(reference="m/1", metric="accuracy", larger_is_better=True, hardware="a machine", least=0.985)
    figure = draw_figure(shown, title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [item for axes in figure.axes for item in axes.get_children() if isinstance(item, Annotation)]
    labels = [text for text in texts if text.get_text().startswith("onnx")]
    assert len(labels) == len(names)
    boxes = [Text.get_window_extent(label, canvas.get_renderer()) for label in labels]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_a_drop_is_in_the_direction_of_the_metric() -> None:
    assert metric_drop(0.9, 0.8, larger_is_better=True) == pytest.approx(0.1)
    assert metric_drop(0.2, 0.3, larger_is_better=False) == pytest.approx(0.1)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn(suffix: str, tmp_path: Path) -> None:
    from noa_conversion.optimise.pareto_plot import PlotTitle, save_plot

    title = PlotTitle(reference="m/1", metric="accuracy", larger_is_better=True, hardware="a machine", least=0.9)
    shown = mark_front([_measured("onnx", 100, 1.0, 0.99), _measured("small", 50, 1.0, 0.98)], larger_is_better=True)
    for name in ("a", "b"):
        save_plot(shown, tmp_path / f"{name}.{suffix}", title)
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    with pytest.raises(InvalidInputError, match=r"\.png or \.svg"):
        save_plot(shown, tmp_path / "a.txt", title)
