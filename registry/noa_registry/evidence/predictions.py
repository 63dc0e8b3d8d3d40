"""Predictions: what a format answered for each row of a split, so that two versions can be compared row by row.

The rows lie in one attachment, a safetensors file with `outputs`, `targets`, `rows` (their positions in the split,
where only a sample is kept) and one mask `slice:NAME` per slice. It is bounded: of a split with more than `MAX_ROWS`
rows, or more than `MAX_BYTES` of them, a sample is kept, drawn with a seed that is recorded. `row_digest` names the
rows and their order: predictions with the same one can be paired.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from noa.digests import digest_arrays, digest_json
from noa.errors import IntegrityError, InvalidInputError
from noa_registry.evidence.facts import MAX_ATTACHMENT_BYTES, PREDICTIONS, Attachment, Evidence
from noa_registry.evidence.reading import Reader

if TYPE_CHECKING:
    import numpy as np

MAX_ROWS: Final = 50_000
MAX_BYTES: Final = MAX_ATTACHMENT_BYTES
MEDIA_TYPE: Final = "application/vnd.noa.predictions+safetensors"
_SAMPLE_SEED = 0
_HEADER_BYTES = 1 << 16  # of a safetensors file; the names of slices are in it
_SLICE = "slice:"
CLASS_PREFIX: Final = "class="
_CLASS_NAME = re.compile(r"class=\d{1,9}")
_SLICE_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Arrays of the same rows in the same order: `outputs` (rows, ...), `targets` (rows, ...), masks (rows,) by
    slice."""

    outputs: np.ndarray
    targets: np.ndarray
    slices: Mapping[str, np.ndarray] = field(default_factory=dict[str, "np.ndarray"])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.targets)

    @property
    def has_nan(self) -> bool:
        """Whether an output is not a number."""
        import numpy as np

        return bool(np.isnan(self.outputs).any())

    def mask_of(self, name: str) -> np.ndarray | None:
        """Return which rows belong to a slice; `class=3` are those whose target is 3, unless the slices say else."""
        if name in self.slices or not _CLASS_NAME.fullmatch(name) or self.targets.ndim != 1:
            return self.slices.get(name)
        return self.targets == int(name.removeprefix(CLASS_PREFIX))

    def take(self, mask: np.ndarray) -> Predictions:
        """Return the rows that a mask or index names."""
        slices = {name: array[mask] for name, array in self.slices.items()}
        return Predictions(outputs=self.outputs[mask], targets=self.targets[mask], slices=slices)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionsEvidence:
    """Where the predictions of format `subject`, whose bytes are `digest`, are, and which rows they are of.

    `objective` says how the model's output `output` is read (`cross_entropy`: logits per class). `sample_seed` is None
    where all `total_rows` are kept.
    """

    subject: str
    digest: str
    dataset_digest: str
    split: str
    objective: str
    output: str
    rows: int
    total_rows: int
    sample_seed: int | None
    row_digest: str
    attachment: str
    slices: tuple[str, ...] = ()

    @staticmethod
    def from_evidence(evidence: Evidence) -> PredictionsEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, or a part is missing or impossible.
        """
        reader = Reader.of(evidence, PREDICTIONS)
        rows, total = reader.integer("rows", minimum=1), reader.integer("total_rows", minimum=1)
        if rows > total:
            raise reader.wrong("rows", f"at most `total_rows`, {total}")
        return PredictionsEvidence(
            subject=evidence.subject,
            digest=evidence.digest,
            dataset_digest=reader.text("dataset_digest"),
            split=reader.text("split"),
            objective=reader.text("objective"),
            output=reader.text("output"),
            rows=rows,
            total_rows=total,
            sample_seed=reader.optional_integer("sample_seed"),
            row_digest=reader.text("row_digest"),
            attachment=reader.text("attachment"),
            slices=reader.texts("slices"),
        )


def predictions_evidence(
    predictions: Predictions,
    *,
    subject: str,
    digest: str,
    dataset_digest: str,
    split: str,
    objective: str,
    output: str,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
) -> Evidence | None:
    """Return predictions as a fact with its attachment; None if not even one row fits into `max_bytes`.

    Raises:
        InvalidInputError: the arrays do not have the same rows, or hold something else than numbers.
    """
    _check(predictions)
    total = predictions.rows
    kept = min(total, max_rows, _rows_that_fit(predictions, max_bytes))
    if kept < 1:
        return None
    positions = None if kept == total else _sample(total, kept)
    taken = predictions if positions is None else predictions.take(positions)
    attachment = Attachment(media_type=MEDIA_TYPE, content=_encode(taken, positions))
    values: dict[str, object] = {
        "dataset_digest": dataset_digest,
        "split": split,
        "objective": objective,
        "output": output,
        "rows": kept,
        "total_rows": total,
        "sample_seed": None if positions is None else _SAMPLE_SEED,
        "row_digest": _row_digest(dataset_digest, taken.targets, positions),
        "attachment": attachment.digest,
        "slices": sorted(predictions.slices),
    }
    return Evidence(kind=PREDICTIONS, subject=subject, digest=digest, values=values, attachments=(attachment,))


def decode_predictions(content: bytes, described: PredictionsEvidence) -> Predictions:
    """Read an attachment of predictions and compare it with what the fact says of it.

    Raises:
        IntegrityError: it cannot be read, or holds other rows.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
        slices = {
            name.removeprefix(_SLICE): array.astype(bool) for name, array in arrays.items() if name.startswith(_SLICE)
        }
        found = Predictions(outputs=arrays["outputs"], targets=arrays["targets"], slices=slices)
        _check(found)
    except (SafetensorError, KeyError, ValueError, TypeError, InvalidInputError) as exc:
        raise IntegrityError("predictions cannot be read", where=described.attachment, received=str(exc)[:200]) from exc
    positions = arrays.get("rows")
    row_digest = _row_digest(described.dataset_digest, found.targets, positions)
    if found.rows != described.rows or row_digest != described.row_digest:
        raise IntegrityError(
            "predictions are of other rows than their evidence says",
            where=described.attachment,
            expected=f"{described.rows} rows, {described.row_digest}",
            received=f"{found.rows} rows, {row_digest}",
        )
    return found


def _check(predictions: Predictions) -> None:
    arrays = {"outputs": predictions.outputs, "targets": predictions.targets}
    arrays |= {f"{_SLICE}{name}": mask for name, mask in predictions.slices.items()}
    for name, array in arrays.items():
        if array.ndim < 1 or len(array) != predictions.rows or predictions.rows < 1 or array.dtype.kind not in "biuf":
            raise InvalidInputError(
                f"`{name}` of the predictions cannot be kept",
                expected=f"numbers, {max(predictions.rows, 1)} rows as the targets",
                received=f"{array.dtype.name}{tuple(array.shape)}",
            )
        if name.startswith(_SLICE) and (array.dtype.kind != "b" or array.ndim != 1):
            raise InvalidInputError(f"`{name}` is no mask of rows", expected="booleans (rows,)", received=array.dtype)
    for name in predictions.slices:
        if not _SLICE_NAME.fullmatch(name):
            raise InvalidInputError("a slice cannot have this name", expected="1 to 128 characters", received=name)


def _rows_that_fit(predictions: Predictions, max_bytes: int) -> int:
    arrays = (predictions.outputs, predictions.targets, *predictions.slices.values())
    per_row = 8 + sum(array.nbytes // max(len(array), 1) for array in arrays)  # 8: its position
    return max(0, max_bytes - _HEADER_BYTES - 256 * len(predictions.slices)) // per_row


def _sample(total: int, kept: int) -> np.ndarray:
    import numpy as np

    return np.sort(np.random.default_rng(_SAMPLE_SEED).choice(total, size=kept, replace=False))


def _row_digest(dataset_digest: str, targets: np.ndarray, positions: np.ndarray | None) -> str:
    rows = "all" if positions is None else digest_arrays({"rows": positions.astype("int64")})
    return digest_json({"dataset": dataset_digest, "rows": rows, "targets": digest_arrays({"targets": targets})})


def _encode(predictions: Predictions, positions: np.ndarray | None) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    arrays = {"outputs": predictions.outputs, "targets": predictions.targets}
    arrays |= {f"{_SLICE}{name}": mask.astype(np.uint8) for name, mask in sorted(predictions.slices.items())}
    if positions is not None:
        arrays["rows"] = positions.astype(np.int64)
    little = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
    return save({name: np.ascontiguousarray(array) for name, array in little.items()})
