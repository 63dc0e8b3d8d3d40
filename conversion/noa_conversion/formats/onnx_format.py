"""The `onnx` format: `model.onnx` and `signature.json`, run by onnxruntime, on the CPU unless asked for more.

This is what serving calls, so `run` does nothing but call the session. It imports neither torch nor jax.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from noa.errors import ConversionError, DependencyMissingError, InvalidInputError
from noa.formats import RuntimeOptions
from noa.signatures import Signature, TensorSpec, dtype_name
from noa_conversion.files import read_bytes
from noa_conversion.onnx_bfloat import BfloatSession
from noa_conversion.onnx_runs import run_session

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime

MODEL_FILE = "model.onnx"
_CPU = "CPUExecutionProvider"
_GPUS: Final[Mapping[str, Mapping[str, str]]] = {
    "CUDAExecutionProvider": {"use_tf32": "0"},  # float32 is float32, as where the model was proven
    "ROCMExecutionProvider": {},
    "DmlExecutionProvider": {},
}
"""Best first. TensorRT is left out: it builds for minutes, and computes in what precision it likes."""
# A product of uint8 and int8 is exact everywhere: without it, onnxruntime saturates sums at 16 bits on processors that
# have AVX2 or AVX-512 and no VNNI, and the same file answers differently there.
_EXACT_INT8 = ("session.x64quantprecision", "1")
_LOCALE_REMEDY = "Install it (Debian: package `locales`), or give the `StringNormalizer` the locale `C.UTF-8`"


class OnnxRunnable:
    """An onnxruntime session with the names of its signature. Sessions may be called from any number of threads."""

    __slots__ = ("_errors", "_inputs", "_outputs", "_session", "_where", "device", "runtime", "signature")

    def __init__(
        self,
        session: onnxruntime.InferenceSession | BfloatSession,
        signature: Signature,
        where: Path,
        *,
        runtime: str = "onnxruntime",
    ) -> None:
        self.signature = signature
        provider = (session.session if isinstance(session, BfloatSession) else session).get_providers()[0]
        self.device = "cpu" if provider == _CPU else provider.removesuffix("ExecutionProvider").lower()
        self.runtime = runtime
        self._session = session
        self._where = where
        self._inputs = tuple(spec.name for spec in signature.inputs)
        self._outputs = [spec.name for spec in signature.outputs]
        self._errors = runtime_errors()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs by name. Contiguous inputs are read in place.

        Raises:
            InvalidInputError: the runtime refused the inputs, or ran out of memory.
            ConversionError: it was stopped by a `work_limit`.
        """
        try:
            given = {name: inputs[name] for name in self._inputs}
            arrays = run_session(self._session, self._outputs, given, where=str(self._where))
        except ConversionError:
            raise
        except self._errors as exc:
            raise InvalidInputError(
                f"onnxruntime could not compute: {_first_line(exc)}", where=str(self._where)
            ) from exc
        return dict(zip(self._outputs, cast("list[np.ndarray]", arrays), strict=True))


class OnnxAdapter:
    """Loads the `onnx` format, and those of reduced precision: they are ONNX graphs under names of their own."""

    packages = ("onnx", "onnxruntime")
    extra = "onnx"

    def __init__(self, name: str = "onnx") -> None:
        self._name = name

    @property
    def name(self) -> str:
        """The format's name."""
        return self._name

    def load(self, folder: Path, *, threads: int | None = None) -> OnnxRunnable:
        """Load `model.onnx`; `threads` bounds the threads within an operator (None: onnxruntime's default, all cores).

        Raises:
            InvalidInputError: missing, corrupt or not safe to load, or it differs from its signature.
            DependencyMissingError: onnx or onnxruntime is not installed.
        """
        return self.load_with(folder, RuntimeOptions(threads=threads))

    def load_with(self, folder: Path, options: RuntimeOptions) -> OnnxRunnable:
        """Load `model.onnx`; on a GPU where that is asked for and onnxruntime has one that starts.

        Raises:
            InvalidInputError, DependencyMissingError: as `load`.
        """
        require_onnx(f"the format `{self._name}`")
        import onnxruntime as ort

        threads = options.threads
        if threads is not None and threads < 1:
            raise InvalidInputError("a session needs at least one thread", expected="1 or more", received=threads)
        signature = Signature.load(folder)
        path = folder / MODEL_FILE
        source = _checked_source(folder, signature)
        session_options = ort.SessionOptions()
        session_options.log_severity_level = 4  # what fails is raised; 3 also prints it
        session_options.intra_op_num_threads = threads or 0
        session_options.inter_op_num_threads = 1
        session_options.add_session_config_entry(*_EXACT_INT8)
        gpu = None if options.device == "cpu" else self.accelerator()
        providers = [_CPU] if gpu is None else [(gpu, dict(_GPUS[gpu])), _CPU]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a GPU that does not start; `runtime` says so
                session = ort.InferenceSession(source, session_options, providers=providers)
        except runtime_errors() as exc:
            raise InvalidInputError(
                f"onnxruntime refuses `{MODEL_FILE}`: {_first_line(exc)}",
                where=str(path),
                remedy=_LOCALE_REMEDY if "construct locale" in str(exc) else None,
            ) from exc
        runtime = _describe(session, threads, gpu)
        if any(spec.dtype == "bfloat16" for spec in (*signature.inputs, *signature.outputs)):
            return OnnxRunnable(BfloatSession(session), signature, path, runtime=runtime)
        return OnnxRunnable(session, signature, path, runtime=runtime)

    def accelerator(self) -> str | None:
        """Return the GPU that onnxruntime was built for and finds the library of, None if there is none."""
        try:
            import onnxruntime as ort
        except ImportError:
            return None
        available = ort.get_available_providers()
        return next((name for name in _GPUS if name in available), None)

    def check_signature(self, folder: Path, signature: Signature) -> None:
        """Compare what the graph says it takes and gives with a signature; reads no weights and runs nothing.

        Stricter than `load`, which also reads what was sealed before: a size is free in both or in none. Only an input
        may be held to a size that the graph leaves free.

        Raises:
            InvalidInputError: they differ, or there is no graph; `facts["field"]` names the tensor.
            DependencyMissingError: onnx or onnxruntime is not installed.
        """
        require_onnx(f"the format `{self._name}`")
        from noa_conversion.onnx_graph.interface import read_interface

        path = folder / MODEL_FILE
        found = read_interface(path)
        for side, specs in ((found.inputs, signature.inputs), (found.outputs, signature.outputs)):
            _check_side(list(side), specs, path)
            _check_free(list(side), specs, path, is_output=side is found.outputs)


ADAPTER = OnnxAdapter()
SLIM = OnnxAdapter("onnx-slim")
FP16 = OnnxAdapter("onnx-fp16")
BF16 = OnnxAdapter("onnx-bf16")
INT8 = OnnxAdapter("onnx-int8")
INT8_STATIC = OnnxAdapter("onnx-int8-static")
INT4 = OnnxAdapter("onnx-int4")


def require_onnx(purpose: str) -> None:
    """Raise unless ONNX models can be read and run here.

    Raises:
        DependencyMissingError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as exc:
        raise DependencyMissingError(exc.name or "onnxruntime", extra="onnx", purpose=purpose) from exc
    del onnx, onnxruntime


def _checked_source(folder: Path, signature: Signature) -> bytes | str:
    """Return the very bytes that were checked, or the path where the data lie in other files."""
    from noa_conversion.formats.onnx_check import has_external_data, parse_model

    path = folder / MODEL_FILE
    data = read_bytes(folder, MODEL_FILE)
    model = parse_model(data, path)
    initialisers = {tensor.name for tensor in model.graph.initializer}
    _check_side([value for value in model.graph.input if value.name not in initialisers], signature.inputs, path)
    _check_side(list(model.graph.output), signature.outputs, path)
    return str(path) if has_external_data(model, path) else data


def _check_side(values: list[onnx.ValueInfoProto], specs: tuple[TensorSpec, ...], path: Path) -> None:
    import onnx

    found = {value.name: value.type.tensor_type for value in values}
    if set(found) != {spec.name for spec in specs}:
        raise InvalidInputError(
            f"`{MODEL_FILE}` does not have the tensors of its signature",
            where=str(path),
            expected=str([spec.name for spec in specs]),
            received=str(list(found)),
        )
    for spec in specs:
        tensor = found[spec.name]
        try:
            dtype = dtype_name(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (KeyError, ValueError):
            dtype = f"type {tensor.elem_type}"
        sizes = _sizes(tensor)
        fits = len(sizes) == len(spec.shape) or not tensor.HasField("shape")
        fits = fits and all(
            size == "?" or size == axis for size, axis in zip(sizes, spec.shape, strict=False) if isinstance(axis, int)
        )
        if dtype != spec.dtype or not fits:
            raise InvalidInputError(
                f"tensor `{spec.name}` of `{MODEL_FILE}` differs from its signature",
                where=str(path),
                expected=spec.describe(),
                received=f"{dtype}{sizes}",
                field=spec.name,
            )


def _check_free(
    values: list[onnx.ValueInfoProto], specs: tuple[TensorSpec, ...], path: Path, *, is_output: bool
) -> None:
    """Refuse a free axis of a signature where the graph has a size; of an output also a size where the graph has none.

    A caller who sends what the signature allows would be refused by the graph, or get what the signature excludes.
    """
    found = {value.name: value.type.tensor_type for value in values}
    for spec in specs:
        sizes = _sizes(found[spec.name])
        for size, axis in zip(sizes, spec.shape, strict=False):  # a graph may leave out the whole shape
            if isinstance(axis, str) != (size == "?") and (is_output or isinstance(axis, str)):
                raise InvalidInputError(
                    f"tensor `{spec.name}` of `{MODEL_FILE}` differs from its signature: "
                    + ("a free axis has one size there" if isinstance(axis, str) else "a fixed size is free there"),
                    where=str(path),
                    expected=spec.describe(),
                    received=str(sizes),
                    remedy="Write into the signature what the graph says, or export the graph anew",
                    field=spec.name,
                )


def _describe(session: onnxruntime.InferenceSession, threads: int | None, wanted: str | None) -> str:
    found = session.get_providers()[0]
    missed = "" if wanted in (None, found) else f"; {wanted} is there and does not start"
    return f"onnxruntime {found}, threads: {threads or 'all cores'}{missed}"


def _sizes(tensor: onnx.TypeProto.Tensor) -> tuple[int | str, ...]:
    free = (not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor.shape.dim)  # some write -1
    return tuple("?" if is_free else dim.dim_value for is_free, dim in zip(free, tensor.shape.dim, strict=True))


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return all exception types of onnxruntime; they have no common base but `Exception`."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # compiled, without a stub
    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
