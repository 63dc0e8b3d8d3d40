"""ONNX in JAX: what a caller can rely on, whatever the operators are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from graph_kit import FLOAT, INT64, model, value
from jax import export
from onnx import TensorProto, helper, numpy_helper

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion import load_format, measure_equivalence
from noa_conversion.formats.jax_format import save
from noa_conversion.importers.jax import convert_onnx_to_jax, import_onnx_to_jax, target

BOOL = onnx.TensorProto.BOOL


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)


WEIGHTS = {"stem.weight": draw(6, 3, 3, 3), "stem.bias": draw(6), "head.weight": draw(5, 6), "head.bias": draw(5)}


def image_model() -> bytes:
    """A small convolution network whose batch, height and width are free; its reshape reads the batch from a shape."""
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight", "stem.bias"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Shape", ["image"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "rest"], ["flat"], axis=0),
        helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], transB=1),
    ]
    weights = {**WEIGHTS, "rest": np.asarray([-1], np.int64)}
    inputs = [value("image", FLOAT, ["batch", 3, "height", "width"])]
    return model(nodes, inputs, [value("scores", FLOAT, ["batch", 5])], weights).SerializeToString()


def native(params: dict[str, Any], image: Any) -> Any:
    seen = jax.lax.conv_general_dilated(image, params["stem.weight"], (1, 1), [(1, 1)] * 2)
    active = jax.nn.relu(seen + params["stem.bias"][:, None, None])
    return active.mean((2, 3)) @ params["head.weight"].T + params["head.bias"]


def one_node(kind: str, inputs: list[Any], outputs: list[Any], weights: Any = None, **attributes: Any) -> bytes:
    names = [each.name for each in inputs] + list(weights or {})
    node = helper.make_node(kind, names, [each.name for each in outputs], **attributes)
    return model([node], inputs, outputs, weights).SerializeToString()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_one_jit_computes_what_onnxruntime_does(batch: int) -> None:
    data, image = image_model(), draw(batch, 3, 8, 9)
    imported = import_onnx_to_jax(data)
    (expected,) = onnxruntime.InferenceSession(data).run(None, {"image": image})
    np.testing.assert_allclose(jax.jit(imported.apply)(imported.params, image), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(imported.run({"image": image})["scores"], expected, rtol=1e-5, atol=1e-6)


def test_params_are_all_float_weights_under_their_names() -> None:
    params = import_onnx_to_jax(image_model()).params
    assert params.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(params[name], array)


def test_gradients_are_those_of_the_function_written_in_jax() -> None:
    imported, image = import_onnx_to_jax(image_model()), draw(3, 3, 8, 9)
    received = jax.grad(lambda params: (imported.apply(params, image) ** 2).sum())(imported.params)
    expected = jax.grad(lambda params: (native(params, image) ** 2).sum())(imported.params)
    for name in expected:
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_batch_of_models_and_inputs_can_be_mapped() -> None:
    imported, images = import_onnx_to_jax(image_model()), draw(4, 1, 3, 8, 9)
    ensemble = {name: jnp.stack([array * factor for factor in (1, 2, 3, 4)]) for name, array in imported.params.items()}
    mapped = jax.vmap(imported.apply)(ensemble, images)
    alone = [imported.apply({name: array[i] for name, array in ensemble.items()}, images[i]) for i in range(4)]
    np.testing.assert_allclose(mapped, np.stack(alone), rtol=1e-5, atol=1e-6)


def test_the_function_is_exported_with_symbolic_axes() -> None:
    imported = import_onnx_to_jax(image_model())
    batch, height, width = export.symbolic_shape("batch, height, width")
    image = jax.ShapeDtypeStruct((batch, 3, height, width), jnp.float32)
    exported = export.deserialize(export.export(jax.jit(imported.apply))(imported.params, image).serialize())
    for shape in ((1, 3, 4, 5), (3, 3, 9, 8)):
        expected = imported.apply(imported.params, draw(*shape))
        np.testing.assert_allclose(exported.call(imported.params, draw(*shape)), expected, rtol=1e-5, atol=1e-6)


def test_the_signature_names_free_axes_and_is_computed_not_believed() -> None:
    inputs = [value("x", FLOAT, [None, "the size", 4])]
    outputs = [value("y", FLOAT, [None, None, None])]
    signature = import_onnx_to_jax(one_node("Relu", inputs, outputs)).signature
    assert [spec.describe() for spec in signature.inputs] == ["float32(batch, the_size, 4)"]
    assert [spec.describe() for spec in signature.outputs] == ["float32(batch, the_size, 4)"]


def test_free_axes_are_fixed_by_name() -> None:
    signature = import_onnx_to_jax(image_model(), sizes={"height": 8, "width": 9}).signature
    assert signature.inputs[0].describe() == "float32(batch, 3, 8, 9)"
    with pytest.raises(InvalidInputError, match="`depth`, which is no free axis"):
        import_onnx_to_jax(image_model(), sizes={"depth": 8})


def test_importing_and_running_leave_jax_as_it_was() -> None:
    before = (jax.config.jax_enable_x64, jnp.cumsum, jax.lax.cond)
    imported = import_onnx_to_jax(image_model(), precision="64")
    imported.run({"image": draw(1, 3, 8, 9)})
    assert (jax.config.jax_enable_x64, jnp.cumsum, jax.lax.cond) == before
    np.testing.assert_array_equal(jnp.cumsum(jnp.ones(3), 0), [1, 2, 3])


def test_a_flax_module_has_the_same_params_and_computes_the_same() -> None:
    from flax import nnx

    imported, image = import_onnx_to_jax(image_model()), draw(2, 3, 8, 9)
    module = imported.to_nnx()
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    assert {name: imported.names[name] for name in imported.params} == {name: name for name in flat}
    for name, array in imported.params.items():
        np.testing.assert_array_equal(flat[name][...], array)
    expected = imported.apply(imported.params, image)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(module, image), expected, rtol=1e-5, atol=1e-6)
    grads = nnx.grad(lambda m: m(image).sum())(module)
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(grads))


def test_a_flax_module_needs_flax(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = import_onnx_to_jax(image_model())
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(DependencyMissingError, match="flax"):
        imported.to_nnx()


def test_the_jax_format_is_written_from_an_onnx_folder(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(image_model())
    (tmp_path / "jax").mkdir()
    settings = ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    convert_onnx_to_jax(tmp_path / "onnx", tmp_path / "jax", settings)
    image = draw(3, 3, 8, 9)
    (expected,) = onnxruntime.InferenceSession(image_model()).run(None, {"image": image})
    stored = load_format("jax", tmp_path / "jax")
    assert stored.signature.inputs[0].describe() == "float32(batch, 3, height, width)"
    np.testing.assert_allclose(stored.run({"image": image})["scores"], expected, rtol=1e-5, atol=1e-6)


def test_weights_in_bfloat16_are_stored_exactly(tmp_path: Path) -> None:
    weight = draw(4).astype(ml_dtypes.bfloat16)
    nodes = [helper.make_node("Cast", ["w"], ["wide"], to=FLOAT), helper.make_node("Mul", ["x", "wide"], ["y"])]
    inputs, outputs = [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])]
    imported = import_onnx_to_jax(model(nodes, inputs, outputs, {"w": weight}).SerializeToString())
    assert imported.params["w"].dtype == jnp.bfloat16
    save(imported.to_model(), tmp_path)
    received = load_format("jax", tmp_path).run({"x": draw(3, 4)})["y"]
    np.testing.assert_array_equal(received, draw(3, 4) * weight.astype(np.float32))


def tokens_model() -> bytes:
    """Scores and the best class of each token of a table of 50."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=-1, keepdims=0),
    ]
    outputs = [value("scores", FLOAT, ["batch", "seq", 8]), value("best", INT64, ["batch", "seq"])]
    return model(nodes, [value("ids", INT64, ["batch", "seq"])], outputs, {"table": draw(50, 8)}).SerializeToString()


def test_a_stored_program_takes_and_gives_the_64_bit_whole_numbers_of_its_source(tmp_path: Path) -> None:
    """Tokens: the stored signature is that of the ONNX file, so that the two formats can be sealed in one version."""
    settings = ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(tokens_model())
    import_onnx_to_jax(tmp_path / "onnx" / "model.onnx").signature.save(tmp_path / "onnx")
    (tmp_path / "jax").mkdir()
    convert_onnx_to_jax(tmp_path / "onnx", tmp_path / "jax", settings)
    stored = load_format("jax", tmp_path / "jax")
    assert [spec.dtype for spec in (*stored.signature.inputs, *stored.signature.outputs)] == [
        "int64",
        "float32",
        "int64",
    ]
    tokens = np.random.default_rng(0).integers(0, 50, (5, 7))
    assert stored.run({"ids": tokens})["best"].dtype == np.int64
    evidence = measure_equivalence(
        source="onnx",
        source_folder=tmp_path / "onnx",
        target="jax",
        target_folder=tmp_path / "jax",
        samples={"ids": tokens},
        settings=settings,
    )
    assert evidence.passed, evidence.values
    with pytest.raises(InvalidInputError, match=r"`ids` holds whole numbers.*32 bits.*4294967296.*Serve the format"):
        stored.run({"ids": tokens + 2**32})


_FLOAT = [("Cast", {"to": FLOAT})]
# name: (operators one after another, type, numbers, what comes out)
WHOLE: dict[str, tuple[list[tuple[str, dict[str, Any]]], str, list[int], list[float]]] = {
    "unsigned as signed": ([("Cast", {"to": INT64}), *_FLOAT], "uint32", [2**32 - 2**10, 5], [2**32 - 2**10, 5]),
    "a sum": ([("ReduceSum", {}), *_FLOAT], "int64", [2**30] * 4, [2**32]),
    "twice": ([("Add", {}), *_FLOAT], "int64", [2**31 - 2**8, -(2**31)], [2**32 - 2**9, -(2**32)]),
    "a square": ([("Mul", {}), *_FLOAT], "int64", [2**20, -3], [2**40, 9]),
    "squares": ([("ReduceSumSquare", {}), *_FLOAT], "int64", [2**20, 2**20], [2**41]),
    "a mean": ([("ReduceMean", {})], "int64", [2**31 - 1, 2**31 - 1, 3], [1431655765]),
    "a mean of 32 bits": ([("ReduceMean", {})], "int32", [2**31 - 1, 2**31 - 1, 3], [1431655765]),
    "a mean of unsigned": ([("ReduceMean", {})], "uint64", [2**32 - 1, 2**32 - 1, 3], [2863311531]),
    "a mean of unsigned 32 bits": ([("ReduceMean", {})], "uint32", [2**32 - 1, 2**32 - 1, 3], [2863311531]),
    "a length": ([("ReduceL2", {})], "int64", [2**24 + 1, 0], [2**24 + 1]),
    "a length of unsigned": ([("ReduceL2", {})], "uint64", [2**31 + 1, 0], [2**31 + 1]),
    "exponentials": ([("ReduceLogSumExp", {})], "int64", [2**24 + 1, 3], [2**24 + 1]),
    "the largest": ([("Mul", {}), ("ArgMax", {})], "int64", [1, 2**16, 2**20], [2]),
}


class TestSixtyFourBits:
    """What an int64 or float64 tensor is."""

    X, Y = value("x", INT64, ["n"]), value("y", INT64, ["n"])

    def add(self, number: int) -> bytes:
        return one_node("Add", [self.X], [self.Y], {"big": np.asarray([number], np.int64)})

    def test_they_are_held_in_32_and_come_back_in_the_type_of_the_file(self) -> None:
        imported = import_onnx_to_jax(self.add(5))
        assert imported.apply(imported.params, jnp.arange(3)).dtype == jnp.int32
        received = imported.run({"x": np.asarray([1, -2], np.int64)})["y"]
        assert received.dtype == np.int64
        np.testing.assert_array_equal(received, [6, 3])

    def test_what_runs_here_has_all_of_them(self) -> None:
        received = import_onnx_to_jax(self.add(2**40)).run({"x": np.asarray([2**41, -(2**50)], np.int64)})["y"]
        np.testing.assert_array_equal(received, [2**40 + 2**41, 2**40 - 2**50])

    def test_a_whole_number_that_does_not_fit_the_scope_is_marked(self) -> None:
        imported = import_onnx_to_jax(self.add(2**31 - 1))
        received = jax.jit(imported.apply)(imported.params, jnp.asarray([1, 0, -5, -(2**31)]))
        np.testing.assert_array_equal(received, [-(2**31), 2**31 - 1, 2**31 - 6, -1])
        assert received.dtype == jnp.int32

    @pytest.mark.parametrize("name", WHOLE)
    def test_numbers_beyond_32_bits_in_between_are_right(self, name: str) -> None:
        kinds, dtype, given, expected = WHOLE[name]
        given = np.asarray(given, dtype)
        steps = ["x", *(f"v{i}" for i in range(len(kinds)))]
        nodes = [
            helper.make_node(kind, [steps[i], *((steps[i],) if kind in ("Add", "Mul") else ())], [steps[i + 1]], **more)
            for i, (kind, more) in enumerate(kinds)
        ]
        graph = helper.make_graph(
            nodes,
            "test",
            [value("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), given.shape)],
            [helper.make_empty_tensor_value_info(steps[-1])],
        )
        data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
        imported = import_onnx_to_jax(data)
        (ours,) = imported.run({"x": given}).values()
        outside = jax.jit(imported.apply)(imported.params, jnp.asarray(given.astype(dtype.replace("int64", "int32"))))
        np.testing.assert_array_equal(ours.ravel(), expected)
        np.testing.assert_array_equal(np.asarray(outside).ravel(), expected)
        if np.dtype(dtype).kind == "i" or kinds[0][0] == "Cast":  # onnxruntime has no arithmetic of unsigned 64 bits
            (theirs,) = onnxruntime.InferenceSession(data).run(None, {"x": given})
            np.testing.assert_array_equal(theirs.ravel(), expected)

    @pytest.mark.parametrize("number", [1e300, 1e-300, 1e-40])
    def test_a_float_that_float32_does_not_come_near_is_refused(self, number: float) -> None:
        x, y = value("x", TensorProto.DOUBLE, ["n"]), value("y", TensorProto.DOUBLE, ["n"])
        data = one_node("Mul", [x], [y], {"factor": np.asarray([number])})
        with pytest.raises(ConversionError, match=r'float64 does not fit the float32.*precision="64"'):
            import_onnx_to_jax(data)
        received = import_onnx_to_jax(data, precision="64").run({"x": np.asarray([2.0])})["y"]
        np.testing.assert_array_equal(received, [2 * number])

    def test_a_number_of_the_graph_has_all_of_its_bits(self) -> None:
        nodes = [
            helper.make_node("Constant", [], ["tiny"], value=numpy_helper.from_array(np.asarray([1e-300]))),
            helper.make_node("Constant", [], ["huge"], value=numpy_helper.from_array(np.asarray([1e300]))),
            helper.make_node("Mul", ["x", "tiny"], ["small"]),
            helper.make_node("Mul", ["small", "huge"], ["y"]),
        ]
        x, y = value("x", TensorProto.DOUBLE, ["n"]), value("y", TensorProto.DOUBLE, ["n"])
        imported = import_onnx_to_jax(model(nodes, [x], [y]).SerializeToString())
        received = jax.jit(imported.apply)(imported.params, jnp.asarray([3.0]))
        assert received.dtype == jnp.float32
        np.testing.assert_allclose(received, [3.0], rtol=1e-6)

    def test_asked_for_they_have_64(self) -> None:
        imported = import_onnx_to_jax(self.add(2**40), precision="64")
        received = imported.run({"x": np.asarray([2**41], np.int64)})["y"]
        np.testing.assert_array_equal(received, [2**40 + 2**41])
        assert jnp.arange(3).dtype == jnp.int32

    def test_a_float_becomes_its_whole_number_or_the_mark(self) -> None:
        cast = one_node("Cast", [value("x", FLOAT, ["n"])], [self.Y], to=INT64)
        x = np.asarray([3e9, -3e9, 2.9, -2.9], np.float32)
        wide = import_onnx_to_jax(cast, precision="64").run({"x": x})["y"]
        np.testing.assert_array_equal(wide, [3_000_000_000, -3_000_000_000, 2, -2])
        imported = import_onnx_to_jax(cast)
        np.testing.assert_array_equal(imported.run({"x": x})["y"], wide)
        np.testing.assert_array_equal(jax.jit(imported.apply)({}, x), [-(2**31), -(2**31), 2, -2])

    def test_a_scope_around_the_trace_decides(self) -> None:
        with jax.enable_x64(True):
            imported = import_onnx_to_jax(self.add(2**40))
            received = jax.jit(imported.apply)(imported.params, np.asarray([1], np.int64))
        assert received.dtype == np.int64
        assert int(received[0]) == 2**40 + 1


class TestNumbersThatDecideShapes:
    """Inputs that must be bound."""

    DATA, SHAPE = value("data", FLOAT, [2, 6]), value("shape", INT64, [2])

    def reshape(self) -> bytes:
        return one_node("Reshape", [self.DATA, self.SHAPE], [value("y", FLOAT, ["a", "b"])])

    def test_one_is_bound_and_leaves_the_function(self) -> None:
        imported = import_onnx_to_jax(self.reshape(), bind={"shape": np.asarray([3, 4])})
        assert [each.name for each in imported.inputs] == ["data"]
        assert imported.apply(imported.params, draw(2, 6)).shape == (3, 4)

    def test_one_that_is_not_bound_is_refused_by_name(self) -> None:
        with pytest.raises(ConversionError, match=r"`Reshape`.*shape.*run time.*bind=\{\"shape\": array\}"):
            import_onnx_to_jax(self.reshape())

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="`sape`, which is no input"):
            import_onnx_to_jax(self.reshape(), bind={"sape": np.asarray([3, 4])})


def test_missing_params_and_inputs_are_refused_by_name() -> None:
    imported = import_onnx_to_jax(image_model())
    with pytest.raises(InvalidInputError, match=r"`head\.bias`"):
        imported.apply(
            {name: array for name, array in imported.params.items() if name != "head.bias"}, draw(1, 3, 4, 4)
        )
    with pytest.raises(InvalidInputError, match="`image`"):
        imported.apply(imported.params)


def test_what_is_random_or_text_is_refused_by_name() -> None:
    outputs = [value("y", FLOAT, [2])]
    with pytest.raises(ConversionError, match="`RandomUniformLike`"):
        import_onnx_to_jax(one_node("RandomUniformLike", [value("x", FLOAT, [2])], outputs))
    text = [value("x", onnx.TensorProto.STRING, [2])]
    with pytest.raises(ConversionError, match="`x` holds texts"):
        import_onnx_to_jax(one_node("StringNormalizer", text, [value("y", onnx.TensorProto.STRING, [2])]))


def test_old_opsets_add_along_an_axis_that_they_name() -> None:
    x, y, bias = value("x", FLOAT, [2, 3, 4]), value("y", FLOAT, [2, 3, 4]), draw(3)
    node = helper.make_node("Add", ["x", "bias"], ["y"], broadcast=1, axis=1)
    imported = import_onnx_to_jax(model([node], [x], [y], {"bias": bias}, opset=6).SerializeToString())
    np.testing.assert_allclose(imported.apply(imported.params, draw(2, 3, 4)), draw(2, 3, 4) + bias[:, None], rtol=1e-6)


def test_a_weight_is_copied_once_out_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.ndarray] = []
    copy = target.aligned

    def watched(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        made.append(copy(array, dtype))
        return made[-1]

    monkeypatch.setattr(target, "aligned", watched)
    imported = import_onnx_to_jax(image_model())
    used = {array.unsafe_buffer_pointer() for array in imported.params.values()}
    assert used == {array.ctypes.data for array in made}, "JAX copied what it could take as it is"
    assert len(used) == len(WEIGHTS)
