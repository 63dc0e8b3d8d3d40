"""Flax NNX and Equinox modules as pure functions of named params.

Both kinds are pytrees: the arrays are taken out under their dotted paths (`layers.0.kernel`), and put back for each
call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from noa.errors import ConversionError, DependencyMissingError
from noa_conversion.formats.jax_format import import_jax

if TYPE_CHECKING:
    from noa.signatures import Signature
    from noa_conversion.models import JaxModel


def from_nnx(module: Any, signature: Signature, *, call: Callable[..., Any] | None = None) -> JaxModel:
    """Return a Flax NNX module in evaluation mode as a model; the state of random generators is no param.

    Raises:
        DependencyMissingError: Flax is not installed.
        ConversionError: two arrays have the same path.
    """
    import_jax()
    try:
        from flax import nnx
    except ImportError as exc:
        raise DependencyMissingError("flax", extra="flax", purpose="a Flax NNX module as a model") from exc
    graph, generators, state = nnx.split(copy.deepcopy(module), nnx.RngState, ...)
    named = _Named(state, ends=("value",))
    run = call if call is not None else lambda part, *inputs: part(*inputs)

    def apply(params: Mapping[str, Any], *inputs: Any) -> Any:
        rebuilt: Any = nnx.merge(graph, generators, named.rebuilt(params))
        rebuilt.eval()
        return run(rebuilt, *inputs)

    return _model(apply, named, signature)


def from_equinox(
    module: Any, signature: Signature, *, call: Callable[..., Any] | None = None, per_sample: bool = True
) -> JaxModel:
    """Return an Equinox module in inference mode as a model; `per_sample` maps it over the first axis of its inputs.

    Raises:
        DependencyMissingError: Equinox is not installed.
        ConversionError: two arrays have the same path.
    """
    jax = import_jax()
    try:
        import equinox
    except ImportError as exc:
        raise DependencyMissingError("equinox", extra="equinox", purpose="an Equinox module as a model") from exc
    arrays, rest = equinox.partition(equinox.nn.inference_mode(module), equinox.is_array)
    named = _Named(arrays)
    run = call if call is not None else lambda part, *inputs: part(*inputs)

    def apply(params: Mapping[str, Any], *inputs: Any) -> Any:
        whole = equinox.combine(named.rebuilt(params), rest)
        one = lambda *sample: run(whole, *sample)  # noqa: E731  # one expression
        return jax.vmap(one)(*inputs) if per_sample else one(*inputs)

    return _model(apply, named, signature)


class _Named:
    """The arrays of a pytree under dotted paths; a last part of the path in `ends` is left out."""

    def __init__(self, tree: Any, *, ends: tuple[str, ...] = ()) -> None:
        import jax

        leaves, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._paths = [_path(path, ends) for path, _ in leaves]
        names = [".".join(path) for path in self._paths]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConversionError(f"several arrays of the module have the path `{twice[0]}`", where="JAX")
        self._leaves = [leaf for _, leaf in leaves]

    def params(self) -> dict[str, Any]:
        """Return the arrays as nested dicts."""
        params: dict[str, Any] = {}
        for path, leaf in zip(self._paths, self._leaves, strict=True):
            here = params
            for part in path[:-1]:
                here = here.setdefault(part, {})
            here[path[-1]] = leaf
        return params

    def rebuilt(self, params: Mapping[str, Any]) -> Any:
        """Return the pytree with the arrays of `params`."""
        import jax

        leaves: list[Any] = []
        for path in self._paths:
            here: Any = params
            for part in path:
                here = here[part]
            leaves.append(here)
        return jax.tree_util.tree_unflatten(self._structure, leaves)


def _path(keys: Any, ends: tuple[str, ...]) -> tuple[str, ...]:
    parts = [str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))) for key in keys]
    return tuple(parts[:-1] if len(parts) > 1 and parts[-1] in ends else parts)


def _model(apply: Callable[..., Any], named: _Named, signature: Signature) -> JaxModel:
    from noa_conversion.models import JaxModel

    return JaxModel(apply=apply, params=named.params(), signature=signature)
