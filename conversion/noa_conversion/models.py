"""Live models: what training hands over, before any file exists.

Both types carry a signature; a format is written from them by `save_native` and `convert`. The frameworks are not
imported here: the types only hold their objects, and what knows a framework is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from noa.errors import ConversionError
from noa.signatures import Signature, TensorSpec

if TYPE_CHECKING:
    import torch

NativeFormat: TypeAlias = Literal["torch", "jax"]
LARGEST_AXIS = 2**28
"""Largest size of a free axis, told to the exporters: a graph that cuts an axis at, say, 10**9 leaves it free then."""
_JAX_REFUSED = {"int64": "int32", "uint64": "uint32", "float64": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A PyTorch module. `forward` takes the inputs positionally and gives one tensor or a tuple, in signature order.

    Raises:
        ConversionError: the signature has a tensor of texts.
    """

    module: torch.nn.Module
    signature: Signature

    def __post_init__(self) -> None:
        refuse_texts(self.signature, "PyTorch")

    @property
    def format(self) -> NativeFormat:
        """The format that `save_native` writes."""
        return "torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class JaxModel:
    """A pure function `apply(params, *inputs)` that gives one array or a tuple, and its params: nested dicts of arrays.

    Raises:
        ConversionError: the signature has a 64-bit tensor. JAX computes it in 32 bits unless a process-wide switch is
            on, so that values would change without a word; or it has a tensor of texts.
    """

    apply: Callable[..., Any]
    params: Mapping[str, Any]
    signature: Signature

    def __post_init__(self) -> None:
        refuse_texts(self.signature, "JAX")
        for spec in (*self.signature.inputs, *self.signature.outputs):
            if spec.dtype in _JAX_REFUSED:
                raise ConversionError(
                    f"tensor `{spec.name}` of a JAX model is {spec.dtype}, which JAX computes in 32 bits",
                    expected=_JAX_REFUSED[spec.dtype],
                    received=spec.dtype,
                    remedy=f"Declare `{spec.name}` as {_JAX_REFUSED[spec.dtype]} in the signature",
                    field=spec.name,
                )

    @property
    def format(self) -> NativeFormat:
        """The format that `save_native` writes."""
        return "jax"

    @staticmethod
    def from_nnx(module: Any, signature: Signature, *, call: Callable[..., Any] | None = None) -> JaxModel:
        """Return a Flax NNX module in evaluation mode as a model; params have the dotted paths of its variables.

        `call(module, *inputs)` says how it is called, if not as `module(*inputs)`.

        Raises:
            DependencyMissingError: Flax is not installed.
        """
        from noa_conversion.exporters.jax_modules import from_nnx

        return from_nnx(module, signature, call=call)

    @staticmethod
    def from_equinox(
        module: Any, signature: Signature, *, call: Callable[..., Any] | None = None, per_sample: bool = True
    ) -> JaxModel:
        """Return an Equinox module in inference mode as a model; params have the dotted paths of its arrays.

        Modules of Equinox take one sample: `per_sample` maps over the first axis of every input. `call(module,
        *inputs)` says how it is called, if not as `module(*inputs)`; state and keys belong there.

        Raises:
            DependencyMissingError: Equinox is not installed.
        """
        from noa_conversion.exporters.jax_modules import from_equinox

        return from_equinox(module, signature, call=call, per_sample=per_sample)


def free_axes(specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Return the names of all free axes of `specs`, in order of appearance."""
    return tuple(dict.fromkeys(axis for spec in specs for axis in spec.shape if isinstance(axis, str)))


def refuse_texts(signature: Signature, library: str) -> None:
    """Check that no tensor is one of texts, which only ONNX computes with.

    Raises:
        ConversionError: one is; names it.
    """
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "string":
            raise ConversionError(
                f"tensor `{spec.name}` holds texts, and {library} has no tensors of them",
                expected="numbers or booleans",
                received=spec.describe(),
                remedy="Keep such a model in ONNX, or number its texts before it",
                field=spec.name,
            )


def refuse_unbound_axes(signature: Signature, where: str) -> None:
    """Check that every free axis of an output is an axis of some input, so that its size is known.

    Raises:
        ConversionError: an output names an axis that no input has.
    """
    known = free_axes(signature.inputs)
    for spec in signature.outputs:
        for axis in spec.shape:
            if isinstance(axis, str) and axis not in known:
                raise ConversionError(
                    f"output `{spec.name}` has the free axis `{axis}`, which no input has",
                    where=where,
                    expected=f"one of {list(known)}",
                    received=axis,
                    field=spec.name,
                )
