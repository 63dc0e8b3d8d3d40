"""The `torch` format: an exported program that takes its weights as arguments, and the weights as safetensors.

    program.pt2            ATen graph without weights; `torch.export.load` of a stock PyTorch reads it
    weights.safetensors    parameters and buffers under their dotted names
    program.json           order of the weights, and which of them are buffers
    signature.json

The program is checked by `torch_archive` before PyTorch sees it, and run as a graph of ATen calls without user code.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noa.atomic_write import set_usual_mode, write_file
from noa.digests import canonical_json
from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.formats import RuntimeOptions
from noa.signatures import Signature, TensorSpec, numpy_dtype
from noa_conversion.files import WEIGHTS_FILE, check_weight_names, read_bytes, read_json, unwritable_weights
from noa_conversion.formats.torch_archive import PROGRAM_FILE, canonical_archive
from noa_conversion.models import LARGEST_AXIS, TorchModel, free_axes

if TYPE_CHECKING:
    import numpy as np
    import torch

LAYOUT_FILE = "program.json"
_EXAMPLE_SIZES = (3, 5, 7, 11, 13, 17)
"""Sizes of free axes in the example: distinct, and not 1, which the exporter would take for a fixed size."""
_COMPILED_RTOL, _COMPILED_ATOL = 1e-3, 1e-4  # of float32, as for equivalence
_WARNING_LOCK = threading.RLock()


class TorchRunnable:
    """A graph of ATen calls with its weights bound. Calls share nothing but the weights, which are never written."""

    __slots__ = (
        *("_graph", "_inputs", "_outputs", "_torch", "_weights", "_where"),
        *("device", "runtime", "signature"),
    )

    def __init__(
        self,
        graph: Any,
        weights: list[torch.Tensor],
        signature: Signature,
        where: Path,
        *,
        device: str = "cpu",
        runtime: str = "PyTorch",
    ) -> None:
        self.signature = signature
        self.device = device
        self.runtime = runtime
        self._torch = import_torch()
        self._graph = graph
        self._weights = weights
        self._where = where
        self._inputs = tuple(spec.name for spec in signature.inputs)
        self._outputs = tuple(spec.name for spec in signature.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name.

        Raises:
            InvalidInputError: PyTorch refused the inputs, or ran out of memory.
        """
        torch = self._torch
        try:
            with torch.inference_mode():
                tensors = [_to_tensor(torch, inputs[name]) for name in self._inputs]
                if self.device != "cpu":
                    tensors = [tensor.to(self.device) for tensor in tensors]
                outputs = self._graph(*self._weights, *tensors)
                if self.device != "cpu":
                    outputs = [output.cpu() for output in outputs]
                return {name: _to_array(torch, output) for name, output in zip(self._outputs, outputs, strict=True)}
        except (RuntimeError, IndexError, TypeError, ValueError) as exc:
            raise InvalidInputError(f"PyTorch could not compute: {first_line(exc)}", where=str(self._where)) from exc


class TorchAdapter:
    """Loads the `torch` format."""

    packages = ("torch", "safetensors")
    extra = "torch"

    @property
    def name(self) -> str:
        """The format's name."""
        return "torch"

    def load(self, folder: Path, *, threads: int | None = None) -> TorchRunnable:
        """Load the program; `threads` sets PyTorch's thread count, which the whole process shares.

        Raises:
            InvalidInputError: missing, corrupt or not safe to load, or it differs from its signature.
            DependencyMissingError: PyTorch is not installed.
        """
        return self.load_with(folder, RuntimeOptions(threads=threads))

    def load_with(self, folder: Path, options: RuntimeOptions) -> TorchRunnable:
        """Load the program; on a GPU and compiled where that is asked for and can be had.

        Raises:
            InvalidInputError, DependencyMissingError: as `load`.
        """
        torch = import_torch()
        threads = options.threads
        if threads is not None and threads < 1:
            raise InvalidInputError("a model needs at least one thread", expected="1 or more", received=threads)
        graph, weights, signature = read_program(folder)
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        device = "cpu" if options.device == "cpu" else self.accelerator() or "cpu"
        if device != "cpu":
            torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as where the model was proven
            weights = {name: weight.to(device) for name, weight in weights.items()}
        runtime = f"PyTorch on {device}, threads: {torch.get_num_threads()}"
        tensors = list(weights.values())
        if options.is_compiled:
            compiled, problem = compile_graph(graph, weights, signature, device=device)
            runtime += "; compiled" if problem is None else f"; not compiled: {problem}"
            if problem is None:
                graph, tensors = compiled, []
        return TorchRunnable(graph, tensors, signature, folder / PROGRAM_FILE, device=device, runtime=runtime)

    def accelerator(self) -> str | None:
        """Return `cuda` where PyTorch finds such a device, None if there is none."""
        try:
            torch = import_torch()
        except DependencyMissingError:
            return None
        return "cuda" if torch.cuda.is_available() else None

    def check_signature(self, folder: Path, signature: Signature) -> None:
        """Compare what the program says it takes and gives with a signature; reads no weights and imports no torch.

        A folder without a program is left to `load`.

        Raises:
            InvalidInputError: they differ; `facts["field"]` names the tensor.
        """
        from noa_conversion.formats.torch_interface import check_interface

        path = folder / PROGRAM_FILE
        if path.is_file():
            weights = _names_in_layout(folder, "weights")
            check_interface(read_bytes(folder, PROGRAM_FILE), len(weights), signature, path)


ADAPTER = TorchAdapter()


def save(model: TorchModel, folder: Path) -> None:
    """Write a live model into an empty folder.

    Raises:
        ConversionError: it cannot be exported, changes its buffers, or does not do what its signature says.
    """
    torch = import_torch()
    model = dataclasses.replace(model, module=on_cpu(model.module))
    with export_mode(model.module):
        weights = {name: tensor.detach().contiguous().clone() for name, tensor in _named_tensors(model.module)}
        buffers = sorted(name for name, _ in model.module.named_buffers())
        program = _export_functional(model, weights)
    _refuse_control_flow(program)
    specs = program.graph_signature
    mutated = sorted({*specs.buffers_to_mutate.values(), *specs.user_inputs_to_mutate.values()})
    if mutated:
        raise ConversionError(f"the model writes to its inputs or buffers: {', '.join(mutated)}", where="torch export")
    check_outputs(model.signature, [node.meta["val"] for node in _output_nodes(program)])
    buffer = io.BytesIO()
    with quiet_torch():
        program.example_inputs = None  # pyright: ignore[reportAttributeAccessIssue]  # the setter's type is missing
        torch.export.save(program, buffer)
    try:
        archive = canonical_archive(buffer.getvalue(), folder / PROGRAM_FILE)
    except InvalidInputError as exc:
        raise ConversionError(
            f"the exported program needs more than ATen operators: {exc.what}", where="torch export"
        ) from exc
    write_file(folder / PROGRAM_FILE, archive)
    _write_weights(folder, weights)
    write_file(folder / LAYOUT_FILE, canonical_json({"weights": list(weights), "buffers": buffers}))
    model.signature.save(folder)


def compile_graph(
    graph: Any, weights: Mapping[str, torch.Tensor], signature: Signature, *, device: str = "cpu"
) -> tuple[Any, str | None]:
    """Compile a stored graph with its weights, and run it; returns what takes the inputs, or why it is not to be used.

    Compiling is tried with example inputs, whose free axes are dynamic, so that a missing C++ compiler or an operator
    that cannot be compiled shows here and not in a request.
    """
    torch = import_torch()
    try:
        with quiet_torch(), torch.inference_mode():
            compiled = torch.compile(stored_module(graph, weights, frozenset()))
            example = [tensor.to(device) for tensor in example_inputs(signature)]
            for tensor, spec in zip(example, signature.inputs, strict=True):
                for axis, size in enumerate(spec.shape):
                    if isinstance(size, str):
                        torch._dynamo.maybe_mark_dynamic(tensor, axis)
            expected = graph(*weights.values(), *example)
            received = compiled(*example)
            for spec, one, other in zip(signature.outputs, expected, received, strict=True):
                if not torch.allclose(one, other, rtol=_COMPILED_RTOL, atol=_COMPILED_ATOL, equal_nan=True):
                    return None, f"output `{spec.name}` differs"
    except Exception as exc:  # noqa: BLE001  # compilers raise what they like; the graph itself computes
        return None, first_line(exc)
    return compiled, None


def load_live(folder: Path) -> TorchModel:
    """Rebuild a module from the stored program and weights: parameters keep their dotted names.

    Raises:
        InvalidInputError: missing, corrupt or not safe to load.
    """
    graph, weights, signature = read_program(folder)
    buffers = frozenset(_names_in_layout(folder, "buffers"))
    return TorchModel(module=stored_module(graph, weights, buffers), signature=signature)


def import_torch() -> Any:
    """Return the module `torch`.

    Raises:
        DependencyMissingError: it is not installed.
    """
    try:
        import torch
    except ImportError as exc:
        raise DependencyMissingError("torch", extra="torch", purpose="the format `torch`") from exc
    return torch


@contextmanager
def quiet_torch() -> Generator[None]:
    """Hold back the deprecation warnings that PyTorch's exporters raise about their own insides."""
    with _WARNING_LOCK, warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


@contextmanager
def export_mode(module: torch.nn.Module) -> Generator[None]:
    """Put a module into evaluation mode with gradients on, and every part back as it was.

    Without gradients PyTorch's transformer layers call fused operators of their own, which no other format has.
    """
    torch = import_torch()
    training = [part for part in module.modules() if part.training]
    frozen = [weight for weight in module.parameters() if weight.is_floating_point() and not weight.requires_grad]
    module.eval()
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for part in training:
            part.training = True
        for weight in frozen:
            weight.requires_grad_(False)


def on_cpu(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module if all of it is on the CPU, else a copy that is: formats hold CPU programs."""
    if all(tensor.device.type == "cpu" for _, tensor in _named_tensors(module)):
        return module
    return copy.deepcopy(module).cpu()


def example_inputs(signature: Signature) -> tuple[torch.Tensor, ...]:
    """Return zeros (integers) or ones that fit the signature, with distinct sizes above 1 for the free axes."""
    torch = import_torch()
    names = free_axes(signature.inputs)
    sizes = {
        name: _EXAMPLE_SIZES[i % len(_EXAMPLE_SIZES)] + 2 * (i // len(_EXAMPLE_SIZES)) for i, name in enumerate(names)
    }
    tensors: list[torch.Tensor] = []
    for spec in signature.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        dtype = torch_dtype(spec)
        tensors.append(torch.ones(shape, dtype=dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
    return tuple(tensors)


def dynamic_axes(signature: Signature) -> tuple[dict[int, Any], ...]:
    """Return, for each input, its free axes as `torch.export.Dim` objects; one name is one object."""
    from torch.export import Dim

    dims = {name: Dim(name, max=LARGEST_AXIS) for name in free_axes(signature.inputs)}
    return tuple(
        {index: dims[axis] for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in signature.inputs
    )


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """Return PyTorch's dtype of a tensor."""
    return getattr(import_torch(), spec.dtype)


def check_outputs(signature: Signature, values: list[Any]) -> None:
    """Compare what a program gives (real or symbolic tensors) with the outputs of its signature.

    Raises:
        ConversionError: their number, a dtype, rank or fixed size differs; names the output.
    """
    if len(values) != len(signature.outputs):
        raise ConversionError(
            "the model gives another number of outputs than its signature names",
            expected=str([spec.name for spec in signature.outputs]),
            received=f"{len(values)} outputs",
        )
    for spec, value in zip(signature.outputs, values, strict=True):
        dtype = str(value.dtype).removeprefix("torch.")
        shape = tuple(value.shape)
        fits = len(shape) == len(spec.shape) and all(
            isinstance(axis, str) or not isinstance(size, int) or axis == size
            for axis, size in zip(spec.shape, shape, strict=True)
        )
        fixed = [
            axis
            for axis, size in zip(spec.shape, shape, strict=False)
            if isinstance(axis, str) and isinstance(size, int)
        ]
        if dtype != spec.dtype or not fits or fixed:
            raise ConversionError(
                f"output `{spec.name}` is not what the signature says",
                expected=spec.describe(),
                received=f"{dtype}({', '.join(map(str, shape))})",
                field=spec.name,
            )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 300 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _named_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _export_functional(model: TorchModel, weights: Mapping[str, torch.Tensor]) -> torch.export.ExportedProgram:
    """Export `(weights, inputs) -> outputs`."""
    torch = import_torch()
    module = model.module

    class Functional(torch.nn.Module):
        """Takes all weights as arguments; the module itself is no part of it, so that none is baked in."""

        def forward(self, weights: dict[str, Any], inputs: tuple[Any, ...]) -> Any:
            return torch.func.functional_call(module, weights, inputs)

    shapes = (dict.fromkeys(weights), dynamic_axes(model.signature))
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    given = {name: weight.detach().requires_grad_(name in trained) for name, weight in weights.items()}
    try:
        with quiet_torch():
            inputs = example_inputs(model.signature)
            program = torch.export.export(Functional(), (given, inputs), dynamic_shapes=shapes, strict=False)
            return program.run_decompositions({})  # writes in place become values
    except Exception as exc:  # tracing runs the user's forward, which may raise anything
        raise ConversionError(
            f"{NOT_EXPORTED}{first_line(exc)}",
            where=type(module).__name__,
            remedy="Make `forward` free of branches on values, and every free axis of the signature really free",
        ) from exc


NOT_EXPORTED = "the module cannot be exported: "
_CHOICE_REMEDY = (
    "Keep the format `onnx`, which holds `If` and `Loop`; or import with the deciding input fixed: "
    "import_onnx_to_torch(..., bind={name: array})"
)
_SCAN_REMEDY = (
    "Keep the format `onnx`; or fix the number of steps of its `GRU` or `RNN`, or of a `LSTM` with options of its own: "
    "`--size AXIS=NUMBER`, or import_onnx_to_torch(..., sizes={axis: number})"
)


def _refuse_control_flow(program: torch.export.ExportedProgram) -> None:
    """Refuse `cond`, `while_loop` and their like: a stored program is one list of ATen calls, checked as such."""
    for node in program.graph.nodes:
        if node.op == "call_function" and type(node.target).__module__.startswith("torch._higher_order_ops"):
            raise ConversionError(
                f"the model decides at run time what to compute (`{node.target}`), which `torch` programs cannot",
                where="torch export",
                expected="one list of ATen calls",
                remedy=_SCAN_REMEDY if str(node.target) == "scan" else _CHOICE_REMEDY,
                operator=str(node.target),
            )


def _output_nodes(program: torch.export.ExportedProgram) -> list[Any]:
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    nodes = list(cast("tuple[Any, ...]", output.args[0]))
    for node in nodes:
        if not hasattr(node, "meta"):
            raise ConversionError(
                "the model gives an output that is no tensor", expected="tensors", received=repr(node)
            )
    return nodes


def read_program(folder: Path) -> tuple[Any, dict[str, torch.Tensor], Signature]:
    """Return the graph, the tensors it takes before its inputs, by name and in order, and the signature."""
    torch = import_torch()
    signature = Signature.load(folder)
    path = folder / PROGRAM_FILE
    archive = canonical_archive(read_bytes(folder, PROGRAM_FILE), path)
    order = _names_in_layout(folder, "weights")
    stored = _read_weights(folder)
    check_weight_names(folder, stored, order)
    weights = {name: stored[name] for name in order}
    try:
        with quiet_torch():
            program = torch.export.load(io.BytesIO(archive))
    except Exception as exc:  # whatever PyTorch raises on a malformed graph, the file is at fault
        raise InvalidInputError(f"PyTorch refuses `{PROGRAM_FILE}`: {first_line(exc)}", where=str(path)) from exc
    return program.graph_module, {**_bound_constants(program, weights, signature, path), **weights}, signature


def _names_in_layout(folder: Path, key: str) -> list[str]:
    names = read_json(folder, LAYOUT_FILE).get(key)
    if not isinstance(names, list):
        raise InvalidInputError(f"`{LAYOUT_FILE}` does not list the {key}", where=str(folder), file=LAYOUT_FILE)
    return [str(name) for name in cast("list[object]", names)]


def _bound_constants(
    program: Any, weights: Mapping[str, torch.Tensor], signature: Signature, path: Path
) -> dict[str, torch.Tensor]:
    """Check what the graph takes and gives, and return its constants: they are its first arguments."""
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    lifted = cast("dict[str, str]", program.graph_signature.inputs_to_lifted_tensor_constants)
    expected = len(lifted) + len(weights) + len(signature.inputs)
    if len(placeholders) != expected or set(placeholders[: len(lifted)]) != set(lifted):
        raise InvalidInputError(
            f"`{PROGRAM_FILE}` does not take the weights and inputs that belong to it",
            where=str(path),
            expected=f"{len(lifted)} constants, {len(weights)} weights, {len(signature.inputs)} inputs",
            received=f"{len(placeholders)} arguments",
        )
    metas = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    for (name, weight), meta in zip(weights.items(), metas[len(lifted) :], strict=False):
        if tuple(weight.shape) != tuple(meta.shape) or weight.dtype != meta.dtype:
            raise InvalidInputError(
                f"weight `{name}` does not fit `{PROGRAM_FILE}`",
                where=str(path),
                expected=f"{meta.dtype} {tuple(meta.shape)}",
                received=f"{weight.dtype} {tuple(weight.shape)}",
            )
    try:
        check_outputs(signature, [node.meta["val"] for node in _output_nodes(program)])
    except ConversionError as exc:
        raise InvalidInputError(f"`{PROGRAM_FILE}`: {exc.what}", where=str(path), expected=exc.expected) from exc
    return {lifted[name]: program.constants[lifted[name]] for name in placeholders[: len(lifted)]}


def _write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(weights, folder / WEIGHTS_FILE)
        set_usual_mode(folder / WEIGHTS_FILE)
    except SafetensorError as exc:
        raise unwritable_weights(folder, exc) from exc


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InvalidInputError(f"the format has no file `{WEIGHTS_FILE}`", where=str(folder), file=WEIGHTS_FILE)
    try:
        return dict(sorted(load_file(path).items()))  # the library's order is another each time
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as exc:
        raise InvalidInputError(
            f"`{WEIGHTS_FILE}` is not a whole safetensors file: {first_line(exc)}", where=str(path), file=WEIGHTS_FILE
        ) from exc


def stored_module(graph: Any, weights: Mapping[str, torch.Tensor], buffers: frozenset[str]) -> torch.nn.Module:
    """Return a module around a graph that takes its weights first: they are parameters and buffers of it."""
    torch = import_torch()

    class Stored(torch.nn.Module):
        """A stored graph whose weights are parameters and buffers under their dotted names again."""

        def forward(self, *inputs: Any) -> Any:
            tensors = dict([*self.named_parameters(), *self.named_buffers()])
            return graph(*(tensors[name] for name in weights), *inputs)

    root = Stored()
    for name, tensor in weights.items():
        *parents, leaf = name.split(".")
        here = root
        for part in parents:
            if part not in here._modules:
                here.add_module(part, torch.nn.Module())
            here = here.get_submodule(part)
        if tensor.is_floating_point() and name not in buffers:
            here.register_parameter(leaf, torch.nn.Parameter(tensor))
        else:
            here.register_buffer(leaf, tensor)
    return root.eval()


def _to_tensor(torch: Any, array: np.ndarray) -> torch.Tensor:
    """Share the array's memory where PyTorch can read it without a warning: aligned and writeable. It never writes."""
    if not (array.flags.writeable and array.flags.aligned) or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="), copy=True)
    if array.dtype.kind == "V":  # bfloat16, which PyTorch takes from NumPy as bits
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_array(torch: Any, tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()
