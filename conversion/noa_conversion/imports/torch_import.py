"""An exported PyTorch program from outside: loaded from a checked archive without unpickling, and exported anew."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

from noa.errors import ConversionError, InvalidInputError
from noa.signatures import Axis, DType, Signature, TensorSpec
from noa_conversion.files import read_bytes
from noa_conversion.formats.torch_archive import canonical_archive
from noa_conversion.formats.torch_format import ADAPTER, first_line, import_torch, quiet_torch, save, stored_module
from noa_conversion.imports.examples import make_example
from noa_conversion.models import TorchModel

_TOLERANCE = 1e-4
_WEIGHT_KINDS = ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")


def prepare(source: Path, folder: Path) -> Signature:
    """Write the `torch` format into `folder`: the same program, with its weights as safetensors.

    Raises:
        InvalidInputError: the archive holds pickles or anything else an ATen program does not need.
        ConversionError: the program cannot be exported anew, or computes something else then.
    """
    torch = import_torch()
    archive = canonical_archive(read_bytes(source.parent, source.name), source, from_outside=True)
    try:
        with quiet_torch():
            program = torch.export.load(io.BytesIO(archive))
            module = _plain_module(program)
    except ConversionError:
        raise
    except Exception as exc:  # whatever PyTorch raises on a malformed graph, the file is at fault
        raise InvalidInputError(f"PyTorch refuses `{source.name}`: {first_line(exc)}", where=str(source)) from exc
    signature = _signature(program, source)
    save(TorchModel(module=module, signature=signature), folder)
    _compare(module, signature, folder)
    return signature


def _plain_module(program: Any) -> Any:
    """Return the program as a module: its graph takes weights and flat inputs, and gives flat outputs.

    Raises:
        ConversionError: it writes to its weights or inputs, or does not take them first.
    """
    specs = program.graph_signature
    if specs.buffers_to_mutate or specs.user_inputs_to_mutate:
        raise ConversionError("the program writes to its buffers or inputs", remedy="Export it in evaluation mode")
    kinds = [spec.kind.name for spec in specs.input_specs]
    count = sum(kind in _WEIGHT_KINDS for kind in kinds)
    if any(kind not in _WEIGHT_KINDS for kind in kinds[:count]) or any(kind != "USER_INPUT" for kind in kinds[count:]):
        raise ConversionError("the program takes something besides weights and inputs", received=", ".join(set(kinds)))
    tensors = {**program.constants, **program.state_dict}
    weights = {str(spec.target): tensors[spec.target].detach() for spec in specs.input_specs[:count]}
    buffers = frozenset(name for name, kind in zip(weights, kinds, strict=False) if kind != "PARAMETER")
    if len(weights) != count:
        raise ConversionError("the program takes one weight twice", remedy="Export it anew with a newer PyTorch")
    return stored_module(program.graph_module, weights, buffers)


def _signature(program: Any, source: Path) -> Signature:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [str(name) for name in program.graph_signature.user_inputs]
    symbols: dict[str, str] = {}
    try:
        inputs = tuple(_spec(name, nodes[name].meta["val"], symbols, is_input=True) for name in names)
        (output,) = [node for node in program.graph.nodes if node.op == "output"]
        given = {node.name: node for node in cast("list[Any]", output.args[0])}
        wanted = [str(name) for name in program.graph_signature.user_outputs]
        titles = ["output"] if len(wanted) == 1 else [f"output_{index}" for index in range(len(wanted))]
        outputs = tuple(
            _spec(title, given[name].meta["val"], symbols, is_input=False)
            for title, name in zip(titles, wanted, strict=True)
        )
    except (KeyError, AttributeError, ValueError) as exc:
        raise InvalidInputError(
            f"`{source.name}` takes or gives something that is no tensor: {first_line(exc)}", where=str(source)
        ) from exc
    return Signature(inputs=inputs, outputs=outputs)


def _spec(name: str, value: Any, symbols: dict[str, str], *, is_input: bool) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    shape = tuple(_axis(size, symbols, is_input=is_input, name=name) for size in value.shape)
    return TensorSpec(name=name, dtype=cast("DType", dtype), shape=shape)


def _axis(size: Any, symbols: dict[str, str], *, is_input: bool, name: str) -> Axis:
    if isinstance(size, int):
        return size
    symbol = str(size)
    if symbol not in symbols:
        if not is_input:
            raise ConversionError(
                f"output `{name}` has an axis of the size `{symbol}`, which no input has",
                expected="a size of an input",
                remedy="Export the model so that its outputs have axes of its inputs",
            )
        symbols[symbol] = f"axis_{len(symbols)}" if symbols else "batch"
    return symbols[symbol]


def _compare(module: Any, signature: Signature, folder: Path) -> None:
    """Check that what was written computes what the program does, on made-up inputs."""
    torch = import_torch()
    example = make_example(signature)
    with torch.inference_mode(), quiet_torch():
        given = module(*(torch.from_numpy(example[spec.name]) for spec in signature.inputs))
    values = list(given) if isinstance(given, (tuple, list)) else [given]
    stored = ADAPTER.load(folder).run(example)
    for spec, value in zip(signature.outputs, values, strict=True):
        same = torch.allclose(
            torch.from_numpy(stored[spec.name]), value, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        )
        if not same:
            raise ConversionError(f"the program computes another `{spec.name}` after it was exported anew")
