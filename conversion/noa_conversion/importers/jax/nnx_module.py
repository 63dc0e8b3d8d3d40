"""An imported model as a Flax NNX module. Flax is optional and imported when this is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noa.errors import DependencyMissingError

if TYPE_CHECKING:
    from flax import nnx

    from noa_conversion.importers.jax.importer import ImportedJax


def make_module(imported: ImportedJax) -> nnx.Module:
    """Return a module whose `nnx.Param`s are the params, at the dotted paths of `imported.names`.

    Raises:
        DependencyMissingError: flax is not installed.
    """
    try:
        from flax import nnx
    except ImportError as exc:
        raise DependencyMissingError("flax", extra="flax", purpose="a Flax NNX module") from exc

    class Layer(nnx.Module):
        """A part of the path of a param."""

    class OnnxModule(nnx.Module):
        """An ONNX model; call it with the inputs by position."""

        def __call__(self, *inputs: Any) -> Any:
            """Compute the outputs: one array, or a tuple."""
            return imported.apply({name: _at(self, path)[...] for name, path in imported.names.items()}, *inputs)

    module = OnnxModule()
    for name, path in imported.names.items():
        *parents, last = path.split(".")
        here: Any = module
        for part in parents:
            if not hasattr(here, part):
                setattr(here, part, Layer())
            here = getattr(here, part)
        setattr(here, last, nnx.Param(imported.params[name]))
    return module


def _at(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
