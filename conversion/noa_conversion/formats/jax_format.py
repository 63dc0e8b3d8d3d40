"""The `jax` format: a function exported as StableHLO that takes its weights as arguments, and the safetensors.

    program.stablehlo      what `jax.export` serialises; `jax.export.deserialize` reads it
    weights.safetensors    params under their dotted names
    program.json           order of weights, SHA-256 of the program
    signature.json

The program holds no Python. Its custom calls could still reach into the process (a Python callback is one), so that
only those are accepted which JAX itself needs for free axes and for functions that StableHLO has no word for.

JAX has 32 bits here. A signature may still declare whole numbers of 64 bits, as ONNX does for tokens: they go
to the program in 32 bits, an input that these do not hold is refused by name, and outputs come back as declared.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noa.atomic_write import write_file
from noa.digests import canonical_json, sha256_bytes
from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.formats import RuntimeOptions
from noa.signatures import Signature, TensorSpec
from noa_conversion.files import check_weight_names, read_bytes, read_json, read_weights, write_weights
from noa_conversion.jax_compiling import compiler_options
from noa_conversion.models import LARGEST_AXIS, JaxModel, free_axes
from noa_conversion.whole_numbers import declare_whole_numbers, held_specs, is_narrowed, narrow

if TYPE_CHECKING:
    import numpy as np

PROGRAM_FILE = "program.stablehlo"
LAYOUT_FILE = "program.json"
_CUSTOM_CALL = re.compile(r'custom_call\s*@(?:"([^"]*)"|([\w.$-]+))|call_target_name\s*=\s*"([^"]*)"')
# shape_assertion checks free axes; the others are operations that StableHLO has no own word for.
_ALLOWED_CALLS = {
    "shape_assertion",
    "mhlo.erf",
    "mhlo.topk",
    "mhlo.tan",
    "mhlo.asin",
    "mhlo.acos",
    "mhlo.sinh",
    "mhlo.cosh",
}


class JaxRunnable:
    """A compiled program with its weights bound. Each batch size is compiled once, when it is first seen."""

    __slots__ = ("_call", "_errors", "_narrowed", "_weights", "_where", "runtime", "signature")

    device = "cpu"

    def __init__(
        self, call: Any, weights: tuple[Any, ...], signature: Signature, where: Path, *, narrowed: frozenset[str]
    ) -> None:
        import jax

        self.signature = signature
        self._call = call
        self._weights = weights
        self._where = where
        self._errors = (jax.errors.JaxRuntimeError, ValueError, TypeError)
        self._narrowed = narrowed
        self.runtime = "XLA on cpu"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name.

        Raises:
            InvalidInputError: JAX refused the inputs, they hold a number that the program's 32 bits do not, or memory
                ran out.
        """
        import numpy as np

        given = tuple(
            narrow(spec, inputs[spec.name]) if spec.name in self._narrowed else inputs[spec.name]
            for spec in self.signature.inputs
        )
        try:
            outputs = self._call(self._weights, given)
            return {
                spec.name: np.asarray(output, spec.dtype if spec.name in self._narrowed else None)
                for spec, output in zip(self.signature.outputs, outputs, strict=True)
            }
        except self._errors as exc:
            raise InvalidInputError(f"JAX could not compute: {_first_line(exc)}", where=str(self._where)) from exc


class JaxAdapter:
    """Loads the `jax` format."""

    packages = ("jax", "safetensors")
    extra = "jax"

    @property
    def name(self) -> str:
        """The format's name."""
        return "jax"

    def load(self, folder: Path, *, threads: int | None = None) -> JaxRunnable:
        """Load the program. XLA's thread pool belongs to the process: `threads=1` turns it off, more cannot be bounded
        once it is there. Before that the variable `NPROC` bounds it, which a server sets in its workers.

        Raises:
            InvalidInputError: missing, corrupt or not safe to load, or it differs from its signature.
            DependencyMissingError: JAX is not installed.
        """
        jax = import_jax()
        if threads is not None and threads < 1:
            raise InvalidInputError("a model needs at least one thread", expected="1 or more", received=threads)
        signature = Signature.load(folder)
        layout = read_json(folder, LAYOUT_FILE)
        order = _weight_names(folder, layout)
        stored = read_weights(folder)
        check_weight_names(folder, stored, order)
        exported = _read_program(folder, str(layout.get("program")))
        _check_program(exported, [stored[name] for name in order], signature, folder / PROGRAM_FILE)
        call = jax.jit(exported.call, compiler_options=compiler_options(threads=threads))
        cpu = jax.local_devices(backend="cpu")[0]
        weights = tuple(jax.device_put(stored[name], cpu) for name in order)
        avals = (*exported.in_avals[len(weights) :], *exported.out_avals)
        specs = (*signature.inputs, *signature.outputs)
        narrowed = frozenset(s.name for s, aval in zip(specs, avals, strict=True) if is_narrowed(s, aval.dtype))
        return JaxRunnable(call, weights, signature, folder / PROGRAM_FILE, narrowed=narrowed)

    def load_with(self, folder: Path, options: RuntimeOptions) -> JaxRunnable:
        """Load the program, on the CPU: it was exported for that, and XLA refuses it elsewhere."""
        return self.load(folder, threads=options.threads)

    def accelerator(self) -> None:
        """Return None: stored programs are for the CPU."""
        return

    def check_signature(self, folder: Path, signature: Signature) -> None:
        """Compare what the program says it takes and gives with a signature; reads no weights and imports no JAX.

        A folder without a program is left to `load`.

        Raises:
            InvalidInputError: they differ; `facts["field"]` names the tensor.
        """
        from noa_conversion.formats.jax_interface import check_interface

        path = folder / PROGRAM_FILE
        if path.is_file():
            weights = _weight_names(folder, read_json(folder, LAYOUT_FILE))
            check_interface(read_bytes(folder, PROGRAM_FILE), len(weights), signature, path)


ADAPTER = JaxAdapter()


def save(model: JaxModel, folder: Path, *, declared: Signature | None = None) -> None:
    """Write a live model into an empty folder.

    `declared` is the signature of the model's source, whose 64-bit whole numbers the stored one keeps.

    Raises:
        ConversionError: it cannot be traced with free axes, needs a custom call, or does not do what its signature
            says.
    """
    jax = import_jax()
    from jax._src.config import (
        traceback_in_locations_limit,
    )  # public: only process-wide

    weights = flat_params(model.params)
    try:
        with traceback_in_locations_limit(0):  # source locations name files of the machine that exports
            traced = jax.jit(flat_function(model))
            exported = jax.export.export(traced, platforms=("cpu",))(*abstract_arguments(model, weights))
    except Exception as exc:  # tracing runs the user's function, which may raise anything
        raise untraceable(exc) from exc
    check_outputs(model.signature, exported.out_avals)
    program = bytes(exported.serialize(vjp_order=0))
    if calls := _foreign_calls(exported):
        raise ConversionError(f"the function needs the custom calls {calls}", where="jax export")
    write_file(folder / PROGRAM_FILE, program)
    write_weights(folder, weights)
    write_file(folder / LAYOUT_FILE, canonical_json({"weights": list(weights), "program": sha256_bytes(program)}))
    (model.signature if declared is None else declare_whole_numbers(model.signature, declared)).save(folder)


def import_jax() -> Any:
    """Return the module `jax`.

    Raises:
        DependencyMissingError: it is not installed.
    """
    try:
        import jax

        importlib.import_module("jax.export")  # a submodule that `import jax` leaves out
    except ImportError as exc:
        raise DependencyMissingError("jax", extra="jax", purpose="the format `jax`") from exc
    return jax


def flat_params(params: Mapping[str, Any], *, also: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of nested dicts under dotted names, in the order in which they are nested.

    `also` names dtypes that are accepted beside those that every format can hold.

    Raises:
        ConversionError: a key is no text or two paths give one name, a value is no array, or has 64 bits.
    """
    flat: dict[str, np.ndarray] = {}
    _flatten(params, "", flat, also)
    return flat


def flat_function(model: JaxModel) -> Any:
    """Return `(weights tuple, inputs tuple) -> outputs tuple` of the model."""
    paths = [tuple(path) for path in _paths(model.params)]

    def function(weights: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        params: dict[str, Any] = _empty_like(model.params)
        for path, weight in zip(paths, weights, strict=True):
            here = params
            for key in path[:-1]:
                here = here[key]
            here[path[-1]] = weight
        outputs = model.apply(params, *inputs)
        return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

    return function


def abstract_arguments(model: JaxModel, weights: Mapping[str, np.ndarray]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return shapes and dtypes of the weights and inputs; free axes are symbols of one scope, at least 1."""
    jax = import_jax()
    # JAX orders sizes by what it is told: see `LARGEST_AXIS`. A call with more is refused.
    limits = [f"{name} <= {LARGEST_AXIS}" for name in free_axes(model.signature.inputs)]
    scope = jax.export.SymbolicScope(limits)
    inputs: list[Any] = []
    for spec in model.signature.inputs:
        text = ", ".join(str(axis) for axis in spec.shape)
        shape = jax.export.symbolic_shape(text, scope=scope) if free_axes((spec,)) else spec.shape
        inputs.append(jax.ShapeDtypeStruct(shape, spec.dtype))
    return tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in weights.values()), tuple(inputs)


def check_outputs(signature: Signature, avals: Any) -> None:
    """Compare the abstract outputs of a traced function with its signature.

    Raises:
        ConversionError: their number, a dtype, rank or size differs; names the output.
    """
    if len(avals) != len(signature.outputs):
        raise ConversionError(
            "the model gives another number of outputs than its signature names",
            expected=str([spec.name for spec in signature.outputs]),
            received=f"{len(avals)} outputs",
        )
    for spec, aval in zip(signature.outputs, avals, strict=True):
        if str(aval.dtype) != spec.dtype or tuple(map(str, aval.shape)) != tuple(map(str, spec.shape)):
            raise ConversionError(
                f"output `{spec.name}` is not what the signature says",
                expected=spec.describe(),
                received=f"{aval.dtype}({', '.join(map(str, aval.shape))})",
                field=spec.name,
            )


def untraceable(error: Exception) -> ConversionError:
    """Return the error for a function that JAX could not trace with free axes."""
    return ConversionError(
        f"the function cannot be traced: {_first_line(error)}",
        where="JAX",
        remedy="Keep Python branches off traced values and off the sizes of free axes",
    )


def _flatten(value: object, prefix: str, flat: dict[str, np.ndarray], also: tuple[str, ...]) -> None:
    import numpy as np

    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            if not isinstance(key, str) or not key:
                raise ConversionError("params need text keys", where=prefix or "params", received=repr(key))
            _flatten(item, f"{prefix}.{key}" if prefix else key, flat, also)
        return
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise ConversionError(
            f"param `{prefix}` is no array", expected="nested dicts of arrays", received=type(value).__name__
        )
    if prefix in flat:
        raise ConversionError(f"two params have the name `{prefix}`", remedy="Keep dots out of the keys")
    array = np.asarray(cast("Any", value))
    is_held = array.dtype.kind in "biuf" or array.dtype.name in also
    if not is_held or array.dtype.name in ("int64", "uint64", "float64"):
        raise ConversionError(
            f"param `{prefix}` has the dtype {array.dtype.name}",
            expected="bool, or an integer or float of at most 32 bits",
            received=array.dtype.name,
        )
    flat[prefix] = array


def _paths(params: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for key, value in params.items():
        paths += _paths(value, (*prefix, key)) if isinstance(value, Mapping) else [(*prefix, key)]
    return paths


def _empty_like(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _empty_like(value) if isinstance(value, Mapping) else None for key, value in params.items()}


def _weight_names(folder: Path, layout: Mapping[str, object]) -> list[str]:
    names = layout.get("weights")
    if not isinstance(names, list):
        raise InvalidInputError(f"`{LAYOUT_FILE}` does not list the weights", where=str(folder), file=LAYOUT_FILE)
    return [str(name) for name in cast("list[object]", names)]


def _read_program(folder: Path, expected: str) -> Any:
    from jax import export

    path = folder / PROGRAM_FILE
    data = read_bytes(folder, PROGRAM_FILE)
    received = sha256_bytes(data)
    if received != expected:
        raise InvalidInputError(
            f"`{PROGRAM_FILE}` is not the program its folder describes",
            where=str(path),
            expected=expected,
            received=received,
        )
    try:
        exported = export.deserialize(bytearray(data))
        calls = _foreign_calls(exported)
    except Exception as exc:  # a malformed program makes flatbuffers and MLIR raise many types
        raise InvalidInputError(f"JAX refuses `{PROGRAM_FILE}`: {_first_line(exc)}", where=str(path)) from exc
    if calls:
        raise InvalidInputError(
            f"`{PROGRAM_FILE}` calls {calls}, which would run code of this process",
            where=str(path),
            expected=f"only {sorted(_ALLOWED_CALLS)}",
            received=str(calls),
        )
    return exported


def _foreign_calls(exported: Any) -> list[str]:
    found = {next(filter(None, groups)) for groups in _CUSTOM_CALL.findall(exported.mlir_module())}
    return sorted(found - _ALLOWED_CALLS)


def _check_program(exported: Any, weights: list[np.ndarray], signature: Signature, path: Path) -> None:
    avals = list(exported.in_avals)
    if len(avals) != len(weights) + len(signature.inputs):
        raise InvalidInputError(
            f"`{PROGRAM_FILE}` does not take the weights and inputs that belong to it",
            where=str(path),
            expected=f"{len(weights) + len(signature.inputs)} arguments",
            received=f"{len(avals)} arguments",
        )
    for aval, weight in zip(avals, weights, strict=False):
        if tuple(aval.shape) != weight.shape or aval.dtype != weight.dtype:
            raise InvalidInputError(
                f"a weight does not fit `{PROGRAM_FILE}`",
                where=str(path),
                expected=str(aval),
                received=str(weight.shape),
            )
    inputs: tuple[TensorSpec, ...] = signature.inputs
    try:
        held = held_specs(inputs, avals[len(weights) :])
        check_outputs(Signature(inputs=held, outputs=held), avals[len(weights) :])
        outputs = signature.outputs
        if len(outputs) == len(exported.out_avals):
            outputs = held_specs(outputs, exported.out_avals)
        check_outputs(Signature(inputs=held, outputs=outputs), exported.out_avals)
    except ConversionError as exc:
        raise InvalidInputError(
            f"`{PROGRAM_FILE}`: {exc.what}", where=str(path), expected=exc.expected, received=exc.received
        ) from exc


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
