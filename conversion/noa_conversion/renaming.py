"""A target whose inputs and outputs have other names than the source's, as exporters give them on the way back.

The user says which is which (`--rename mul_7=y`); nothing is guessed from the order, which exporters also change. The
comparison then knows the target by the source's names: the model itself (`RenamedModel`) and the values inside it,
where the first node that differs is looked for (`RenamedValues`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from noa.errors import InvalidInputError
from noa.formats import Runnable
from noa.signatures import Signature, TensorSpec

if TYPE_CHECKING:
    from noa_conversion.bisection.search import InnerValues, NamedValue


@dataclass(frozen=True, slots=True, kw_only=True)
class RenamedModel:
    """A model that is called, and answers, by the names in `names`: new ones by its own."""

    inner: Runnable
    names: Mapping[str, str]

    @property
    def signature(self) -> Signature:
        """That of the model, in the new names."""
        found = self.inner.signature
        return Signature(
            inputs=tuple(_renamed(spec, self.names) for spec in found.inputs),
            outputs=tuple(_renamed(spec, self.names) for spec in found.outputs),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs, given and named by the new names."""
        results = self.inner.run(with_own_names(inputs, self.names))
        return {self.names.get(name, name): array for name, array in results.items()}


class RenamedValues:
    """The values inside a renamed model. One that has a new name already is another value, and left out."""

    def __init__(self, inner: InnerValues, names: Mapping[str, str]) -> None:
        self._inner, self._names = inner, names
        self._own = {new: own for own, new in names.items()}
        taken = self._own.keys() - names.keys()
        self.order: Sequence[NamedValue] = tuple(
            replace(value, name=names.get(value.name, value.name)) for value in inner.order if value.name not in taken
        )

    def compute(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the values of `names`; one that is no tensor is left out."""
        asked = [self._own.get(name, name) for name in names]
        found = self._inner.compute(with_own_names(inputs, self._names), asked)
        return {self._names.get(name, name): array for name, array in found.items()}


def renamed_values(values: InnerValues, names: Mapping[str, str]) -> InnerValues:
    """Return the values inside a model by its new names; as they are where there are none."""
    return RenamedValues(values, names) if names else values


def renamed_model(model: Runnable, names: Mapping[str, str]) -> Runnable:
    """Return the model by its new names; as it is where there are none.

    Raises:
        InvalidInputError: a name is none of the model's, or two tensors would have one name.
    """
    if not names:
        return model
    specs = (*model.signature.inputs, *model.signature.outputs)
    own = [spec.name for spec in specs]
    for name in names:
        if name not in own:
            raise InvalidInputError(
                f"`{name}` is renamed, and the target has no input or output of that name",
                expected=", ".join(f"`{known}`" for known in own),
                received=f"{name}={names[name]}",
                remedy="The target's name comes first: `--rename TARGET=SOURCE`",
                field=name,
            )
    for side in (model.signature.inputs, model.signature.outputs):
        called = [names.get(spec.name, spec.name) for spec in side]
        twice = next((name for name in called if called.count(name) > 1), None)
        if twice is not None:
            raise InvalidInputError(
                f"two tensors of the target would be called `{twice}`",
                expected="one name for each",
                received=", ".join(f"{spec.name}={names.get(spec.name, spec.name)}" for spec in side),
            )
    return RenamedModel(inner=model, names=names)


def with_own_names(inputs: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return inputs by the target's own names."""
    own = {new: name for name, new in names.items()}
    return {own.get(name, name): array for name, array in inputs.items()}


def _renamed(spec: TensorSpec, names: Mapping[str, str]) -> TensorSpec:
    return replace(spec, name=names.get(spec.name, spec.name))
