"""TFLite: a flatbuffer of float32 layers, which holds data only, through tflite2onnx, compared with LiteRT.

tflite2onnx turns images from channels last to channels first; the graph that is written takes and gives them as the
TFLite file does. What tflite2onnx leaves out without a word (it knows about forty operators) shows in the comparison.
TFLite fixes its sizes, so the batch is what the file says.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.settings import ConversionSettings
from noa_conversion.files import MAX_GRAPH_BYTES, read_bytes
from noa_conversion.from_others.proof_onnx import write_proven

if TYPE_CHECKING:
    import onnx

_IDENTIFIER: Final = b"TFL3"
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def convert_file(path: Path, folder: Path, settings: ConversionSettings) -> dict[str, object]:
    """Write the format `onnx` into an empty folder from a `.tflite` file; return how it compares.

    Raises:
        InvalidInputError: it is no TFLite file, or LiteRT refuses it.
        ConversionError: an operator is not known, or the graph computes something else.
        DependencyMissingError: tflite2onnx or ai-edge-litert is not installed.
    """
    data = read_bytes(path.parent, path.name, limit=MAX_GRAPH_BYTES)
    if data[4:8] != _IDENTIFIER:
        raise InvalidInputError("the file is no TFLite model", where=str(path), expected="the mark `TFL3`")
    runner = _Runner(data, path)
    proto = _convert(path)
    _restore_layout(proto, runner)
    return write_proven(proto, folder, predict=runner.predict, settings=settings, library="LiteRT")


class _Runner:
    """The TFLite model itself, run by LiteRT."""

    def __init__(self, data: bytes, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as exc:
            raise DependencyMissingError("ai-edge-litert", extra="tflite", purpose="TFLite to ONNX") from exc
        self._where = str(path)
        try:
            self._interpreter: Any = Interpreter(model_content=data)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as exc:
            raise InvalidInputError(f"LiteRT refuses the file: {_first_line(exc)}", where=self._where) from exc
        self.inputs: list[dict[str, Any]] = self._interpreter.get_input_details()
        self.outputs: list[dict[str, Any]] = self._interpreter.get_output_details()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the sizes that the file states for an input or output."""
        found = [detail for detail in (*self.inputs, *self.outputs) if detail["name"] == name]
        return tuple(int(size) for size in found[0]["shape"]) if found else None

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name."""
        for detail in self.inputs:
            self._interpreter.set_tensor(detail["index"], inputs[detail["name"]])
        self._interpreter.invoke()
        return {detail["name"]: np.array(self._interpreter.get_tensor(detail["index"])) for detail in self.outputs}


def _convert(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        import tflite2onnx
    except ImportError as exc:
        raise DependencyMissingError("tflite2onnx", extra="tflite", purpose="TFLite to ONNX") from exc
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it warns once per tensor
    try:
        with tempfile.TemporaryDirectory(prefix="noa-tflite-") as scratch, contextlib.redirect_stdout(io.StringIO()):
            result = Path(scratch) / "model.onnx"
            tflite2onnx.convert(str(path), str(result))
            return onnx.load(result)
    except Exception as exc:  # tflite2onnx raises and asserts whatever it meets
        raise ConversionError(
            f"tflite2onnx cannot express the model: {_first_line(exc)}",
            where=str(path),
            expected="float32 layers that it knows",
        ) from exc
    finally:
        logging.disable(disabled)


def _restore_layout(proto: onnx.ModelProto, runner: _Runner) -> None:
    """Give inputs and outputs the layout of the file again, by a Transpose where tflite2onnx changed it."""
    import onnx

    for values, to_inside in ((proto.graph.input, True), (proto.graph.output, False)):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            inside = tuple(dim.dim_value for dim in dims)
            stated = runner.shape(value.name)
            if stated is None or len(inside) != 4 or inside == stated:
                continue
            if tuple(stated[axis] for axis in _TO_FIRST) != inside:
                raise ConversionError(
                    f"tflite2onnx gave `{value.name}` another shape", expected=str(stated), received=str(inside)
                )
            outer, inner = value.name, f"{value.name}.channels_first"
            for node in proto.graph.node:
                node.input[:] = [inner if name == outer else name for name in node.input]
                node.output[:] = [inner if name == outer else name for name in node.output]
            turn = onnx.helper.make_node(
                "Transpose",
                [outer if to_inside else inner],
                [inner if to_inside else outer],
                perm=_TO_FIRST if to_inside else _TO_LAST,
            )
            proto.graph.node.insert(0 if to_inside else len(proto.graph.node), turn)
            for dim, size in zip(dims, stated, strict=True):
                dim.dim_value = size


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
