"""PyTorch as a target of the interpreter: fake tensors while `make_fx` records, constants and weights as attributes.

A weight or constant becomes a `get_attr` node the first time it is used. Inside a graph that is recorded on its own
(the branch of a `cond`), weights arrive as arguments, which `given` puts in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, track_tensor_tree
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _python_dispatch
from torch.utils._pytree import tree_map

from noa_conversion.importers.registry import Handlers
from noa_conversion.importers.torch.dtypes import dtype_of, tagged, to_torch
from noa_conversion.importers.torch.table import HANDLERS

_C: Any = getattr(torch, "_C")  # noqa: B009  # PyTorch's switches have no public names
CONSTANTS = "constants"
"""The part of a module that holds the constants of its graph, as buffers."""


class TorchTarget:
    """Makes and describes tensors for the handlers of one trace."""

    __slots__ = ("_constants", "_count", "_in_words", "_mode", "weights")

    def __init__(self, mode: FakeTensorMode, in_words: Callable[[str], str]) -> None:
        self._mode = mode
        self._in_words = in_words
        self.weights = Weights(frozenset(), lambda name: self.attach(name, torch.empty(0)))
        self._constants: dict[tuple[int, int], tuple[np.ndarray, torch.nn.Module, torch.Tensor]] = {}
        self._count = 0

    @property
    def name(self) -> str:
        """The target's name in errors."""
        return "torch"

    @property
    def handlers(self) -> Handlers:
        """PyTorch's operators."""
        return HANDLERS

    def constant(self, array: np.ndarray) -> torch.Tensor:
        """Return known numbers as a buffer of the module that is recorded."""
        root = current_root()
        key = (id(array), id(root))
        if key not in self._constants:
            name = f"{CONSTANTS}.c{self._count}"
            self._count += 1
            with outside_the_trace():  # a real tensor, not a stand-in
                tensor = to_torch(array, copy=True)
            self._constants[key] = (array, root, tagged(self.attach(name, tensor), array.dtype))
        return self._constants[key][2]

    def attach(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """Give the module that is recorded an attribute, and return its stand-in in the trace."""
        set_attribute(current_root(), path, tensor)
        tracer: Any = _tracer()
        with _C.DisableTorchFunction():  # making a stand-in switches gradients off and on, which would be recorded
            fake = self._mode.from_tensor(tensor, static_shapes=True)
        proxy = torch.fx.Proxy(tracer.graph.create_node("get_attr", path, (), {}), tracer)
        track_tensor_tree(fake, proxy, constant=None, tracer=tracer)
        return fake

    def shape(self, tensor: torch.Tensor) -> tuple[int | torch.SymInt, ...]:
        """Return the sizes: plain ints, or symbols for free axes."""
        return tuple(tensor.shape)

    def dtype(self, tensor: torch.Tensor) -> np.dtype:
        """Return the ONNX type of the elements."""
        return dtype_of(tensor)

    def at_least(self, left: int | torch.SymInt, right: int | torch.SymInt) -> bool | None:
        """Tell whether `left >= right` for all values of the symbols, or None if that is not certain; adds no guard."""
        if statically_known_true(left >= right):
            return True
        return False if statically_known_true(left < right) else None

    def in_words(self, text: str) -> str:
        """Return a text with the file's names of free axes for PyTorch's symbols."""
        return self._in_words(text)

    def from_symbols(self, array: np.ndarray) -> torch.Tensor:
        """Return ints and symbols as an int64 tensor."""
        parts = [torch.scalar_tensor(element, dtype=torch.int64) for element in array.ravel()]
        if array.ndim == 0:
            return parts[0]
        return torch.stack(parts).reshape(array.shape) if parts else torch.zeros(array.shape, dtype=torch.int64)


class Weights(Mapping[str, Any]):
    """The weights of a model by their names in the file, made tensors of the trace when they are used."""

    __slots__ = ("_attach", "_given", "_made", "_names")

    def __init__(self, names: frozenset[str], attach: Callable[[str], torch.Tensor]) -> None:
        self._names = names
        self._attach = attach
        self._made: dict[str, torch.Tensor] = {}
        self._given: list[Mapping[str, torch.Tensor]] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        for given in reversed(self._given):
            if name in given:
                return given[name]
        if name not in self._made:
            self._made[name] = self._attach(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextmanager
    def given(self, tensors: Mapping[str, torch.Tensor]) -> Generator[None]:
        """Use these tensors for some of the weights."""
        self._given.append(tensors)
        try:
            yield
        finally:
            self._given.pop()


def record_call(
    function: Any, arguments: Sequence[Any], shapes: Sequence[Sequence[Any]], like: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Record a call whose results have these shapes and the type of `like`, without computing it on stand-ins."""
    tracer = _tracer()
    proxy = tracer.create_proxy("call_function", function, tree_map(tracer.unwrap_proxy, tuple(arguments)), {})
    stand_in: Any = like
    with outside_the_trace(), stand_in.fake_mode:
        results = tuple(torch.empty(list(shape), dtype=like.dtype) for shape in shapes)
    track_tensor_tree(results, proxy, constant=None, tracer=tracer)
    return results


def outside_the_trace() -> AbstractContextManager[None]:
    """Compute with real tensors for a while, unrecorded."""
    modes: Any = _python_dispatch
    return modes._disable_current_modes()


def current_root() -> torch.nn.Module:
    """Return the module whose graph is recorded at the moment."""
    return _tracer().root


def set_attribute(root: torch.nn.Module, path: str, tensor: torch.Tensor) -> None:
    """Set a parameter or buffer under a dotted path; the modules on the way are made."""
    *parents, leaf = path.split(".")
    here = root
    for part in parents:
        if part not in dict(here.named_children()):
            here.add_module(part, torch.nn.Module())
        here = here.get_submodule(part)
    if isinstance(tensor, torch.nn.Parameter):
        here.register_parameter(leaf, tensor)
    else:
        here.register_buffer(leaf, tensor)


def _tracer() -> Any:
    mode = get_proxy_mode()
    if mode is None:
        raise RuntimeError("no graph is being recorded")
    return mode.tracer
