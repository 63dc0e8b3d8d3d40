"""Datasets: named arrays in three splits, checked once before any work.

A `Split` holds inputs by name and the targets, all with the row as first axis. The names become the tensor names of the
model's signature, in the order of the mapping. `Dataset.digest` names the values, so that metrics say what they were
measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from noa.digests import digest_arrays, digest_json
from noa.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np

Objective: TypeAlias = Literal["cross_entropy", "binary_cross_entropy", "mse", "token_cross_entropy"]
SplitName: TypeAlias = Literal["train", "validation", "test"]
NOT_COUNTED = -1
"""The target of a step that `token_cross_entropy` leaves out, e.g. padding."""
MAX_SLICES = 100
_LONGEST_SLICE_NAME = 128
# What both backends and every format keep as it is. JAX silently narrows 64-bit arrays, so they are refused, not
# narrowed.
_INPUT_DTYPES = ("float32", "float16", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One part of a dataset. Arrays are shaped (rows, ...); `targets` is (rows,), or (rows, outputs) for `mse`, or
    (rows, length) for `token_cross_entropy`, where -1 is a step that does not count.

    `slices` are masks (rows,) of booleans by name: parts of the rows that are measured on their own, e.g. one region.
    They are not part of the digest: naming one more does not make other data of it.
    """

    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray
    slices: Mapping[str, np.ndarray] = field(default_factory=dict[str, "np.ndarray"])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.targets)

    @property
    def digest(self) -> str:
        """Digest of names, dtypes, shapes and values."""
        arrays = {f"inputs.{name}": array for name, array in self.inputs.items()}
        return digest_arrays(arrays | {"targets": self.targets})

    def head(self, rows: int) -> Split:
        """Return the first `rows` rows, e.g. as input examples."""
        inputs, slices = ({name: array[:rows] for name, array in part.items()} for part in (self.inputs, self.slices))
        return Split(inputs=inputs, targets=self.targets[:rows], slices=slices)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training, validation (chooses the best epoch) and test rows (measures the result). No slots: the digest is
    kept."""

    train: Split
    validation: Split
    test: Split

    @cached_property
    def digest(self) -> str:
        """Digest of all three splits."""
        return digest_json(self.split_digests)

    @cached_property
    def split_digests(self) -> dict[SplitName, str]:
        """Digest of each split by its name; kept, as all values are hashed for it."""
        return {name: self.split(name).digest for name in get_args(SplitName)}

    def split(self, name: SplitName) -> Split:
        """Return a split by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def check_dataset(value: object, *, objective: Objective, where: str) -> Dataset:
    """Return `value` if a model can be trained on it.

    Raises:
        RecipeError: it is no `Dataset`, or an array has the wrong type, dtype, length or holds a NaN; names the array.
            The training rows of a classifier are all of one class.
    """
    if not isinstance(value, Dataset):
        raise RecipeError("`data` returned no dataset", where=where, expected="Dataset", received=type(value).__name__)
    expected: dict[str, str] | None = None
    for name in get_args(SplitName):
        layout = _check_split(value.split(name), f"data().{name}", objective=objective, where=where)
        expected = layout if expected is None else expected
        if layout != expected:
            raise RecipeError(
                f"`data().{name}` differs from `data().train`",
                where=where,
                expected=str(expected),
                received=str(layout),
            )
    targets = _counted(value.train.targets, objective)
    if objective != "mse" and targets.min() == targets.max():
        raise RecipeError(
            "`data().train.targets` are all of one class, of which nothing can be learnt",
            where=where,
            expected="rows of at least two classes",
            received=f"class {int(targets[0])} in all {value.train.rows} rows",
        )
    return value


def unseen_classes(dataset: Dataset, objective: Objective) -> dict[str, list[int]]:
    """Return by split the classes that occur in it and in no training row: a model cannot learn these."""
    import numpy as np

    if objective == "mse":
        return {}
    known = np.unique(_counted(dataset.train.targets, objective))
    others = {"validation": dataset.validation, "test": dataset.test}
    found = {name: np.setdiff1d(np.unique(_counted(split.targets, objective)), known) for name, split in others.items()}
    return {name: [int(label) for label in labels] for name, labels in found.items() if len(labels)}


def _counted(targets: np.ndarray, objective: Objective) -> np.ndarray:
    """Return the targets that count, flat."""
    return targets[targets != NOT_COUNTED] if objective == "token_cross_entropy" else targets


def _check_split(split: object, field: str, *, objective: Objective, where: str) -> dict[str, str]:
    if not isinstance(split, Split):
        raise RecipeError(f"`{field}` is no split", where=where, expected="Split", received=type(split).__name__)
    arrays = {f"{field}.inputs[{name!r}]": array for name, array in split.inputs.items()}
    if not arrays:
        raise RecipeError(f"`{field}.inputs` is empty", where=where, expected="at least one array by name")
    for label, array in (arrays | {f"{field}.targets": split.targets}).items():
        _check_array(array, label, where)
        if len(array) != split.rows or not len(array):
            raise RecipeError(
                f"`{label}` has the wrong number of rows",
                where=where,
                expected=f"{split.rows} rows, as `{field}.targets`" if split.rows else "at least one row",
                received=f"{len(array)} rows",
            )
    for label, array in arrays.items():
        if array.dtype.name not in _INPUT_DTYPES:
            raise RecipeError(
                f"`{label}` has a dtype that the backends do not share",
                where=where,
                expected=", ".join(_INPUT_DTYPES),
                received=array.dtype.name,
                remedy="Convert it in `data`, e.g. `.astype(np.float32)`",
            )
    _check_targets(split.targets, f"{field}.targets", objective=objective, where=where)
    _check_slices(split, f"{field}.slices", where)
    return {name: f"{array.dtype.name}{tuple(array.shape[1:])}" for name, array in split.inputs.items()}


def _check_slices(split: Split, label: str, where: str) -> None:
    if len(split.slices) > MAX_SLICES:
        raise RecipeError(
            f"`{label}` holds too many slices",
            where=where,
            expected=f"at most {MAX_SLICES}",
            received=len(split.slices),
        )
    for name, mask in split.slices.items():
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_SLICE_NAME:
            raise RecipeError(f"`{label}` holds a name that cannot be shown", where=where, received=repr(name)[:80])
        if getattr(getattr(mask, "dtype", None), "kind", None) != "b" or mask.shape != (split.rows,):
            raise RecipeError(
                f"`{label}[{name!r}]` is no mask of the rows",
                where=where,
                expected=f"booleans ({split.rows},)",
                received=f"{getattr(mask, 'dtype', type(mask).__name__)}{getattr(mask, 'shape', '')}",
            )


def _check_array(array: object, label: str, where: str) -> None:
    import numpy as np

    if not isinstance(array, np.ndarray) or array.ndim == 0:
        received = type(array).__name__ if not isinstance(array, np.ndarray) else "a scalar"
        raise RecipeError(f"`{label}` is no array of rows", where=where, expected="numpy.ndarray", received=received)
    if array.dtype.kind not in "biuf":
        raise RecipeError(f"`{label}` holds no numbers", where=where, expected="numbers", received=str(array.dtype))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise RecipeError(f"`{label}` holds a value that is not finite", where=where, received=f"row {row}")


def _check_targets(targets: np.ndarray, label: str, *, objective: Objective, where: str) -> None:
    def refuse(expected: str, received: object) -> RecipeError:
        return RecipeError(
            f"`{label}` does not fit the objective `{objective}`", where=where, expected=expected, received=received
        )

    if objective == "mse":
        if targets.ndim > 2:
            raise refuse("shape (rows,) or (rows, outputs)", targets.shape)
        return
    if objective == "token_cross_entropy":
        if targets.ndim != 2 or targets.dtype.kind not in "iu" or targets.min() < NOT_COUNTED:
            raise refuse("class numbers from 0, or -1, as integers (rows, length)", _describe(targets))
        empty = (targets == NOT_COUNTED).all(axis=1)
        if empty.any():
            raise refuse("a step that counts in each row", f"-1 alone in row {int(empty.argmax())}")
        return
    if targets.ndim != 1:
        raise refuse("shape (rows,)", targets.shape)
    if objective == "cross_entropy" and (targets.dtype.kind not in "iu" or targets.min() < 0):
        raise refuse("class numbers from 0, as integers", f"{targets.dtype.name}, least {targets.min()}")
    if objective == "binary_cross_entropy" and not ((targets == 0) | (targets == 1)).all():
        raise refuse("0 and 1 only", f"{targets.dtype.name} from {targets.min()} to {targets.max()}")


def _describe(targets: np.ndarray) -> str:
    return f"{targets.dtype.name}{tuple(targets.shape)}, least {targets.min()}"
