"""The fact itself: what was measured, on which bytes, and by when; free JSON values that the kinds give a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, cast

from noa.digests import sha256_bytes
from noa.errors import InvalidInputError
from noa_registry.evidence.recording import Recording

METRICS: Final = "metrics"
EQUIVALENCE: Final = "equivalence"
ENVIRONMENT: Final = "environment"
PREDICTIONS: Final = "predictions"
CALIBRATION: Final = "calibration"
LATENCY: Final = "latency"
SIZE: Final = "size"
SCAN: Final = "scan"
COMPATIBILITY: Final = "compatibility"
GATE: Final = "gate"
ORIGIN: Final = "origin"
HISTORY: Final = "history"
WHOLE_VERSION: Final = "version"
MAX_ATTACHMENT_BYTES: Final = 16 << 20
_SHOWN: Final = 80
_MOST_BITS: Final = 1023  # whatever is compared is compared as a float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """Bytes that are too large for a row of evidence, named by their SHA-256."""

    media_type: str
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """The name of the bytes."""
        return sha256_bytes(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measured fact.

    `subject` is the format that was measured, or `"version"`; `digest` names the measured bytes; `passed` is None where
    the fact is a number and not a judgement; `values` are plain JSON values. `attachments` are on their way into the
    registry: evidence that was read back names them by digest only (`attachment_digests`), `Registry.attachment` reads
    them. `recording` says who attached it, of evidence that was read back.
    """

    kind: str
    subject: str
    digest: str
    passed: bool | None = None
    values: Mapping[str, object] = field(default_factory=dict[str, object])
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attachments: tuple[Attachment, ...] = field(default=(), compare=False, repr=False)
    recording: Recording | None = field(default=None, compare=False, repr=False)

    def describe_recording(self) -> str:
        """Say who attached it and when."""
        return "recorded by an older noa, which kept no name" if self.recording is None else self.recording.describe()


def attachment_digests(evidence: Evidence) -> tuple[str, ...]:
    """Return the digests of the attachments that a fact needs; every kind keeps its one under `attachment`."""
    named = evidence.values.get("attachment")
    return (named,) if isinstance(named, str) else ()


def plain_json(value: object) -> object:
    """Return `value` as plain JSON values; NumPy numbers become numbers, NaN and infinities become texts.

    Raises:
        InvalidInputError: something in it has no JSON form.
    """
    if isinstance(value, int) and int(value).bit_length() > _MOST_BITS:
        raise InvalidInputError(
            "a number is too large", expected=f"a whole number of at most {_MOST_BITS} bits", received="a larger one"
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return _plain_table(cast("Mapping[object, object]", value))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain_json(entry) for entry in cast("Sequence[object]", value)]
    if _has_no_plain_form(value):
        raise _not_json(value)
    for method in ("item", "tolist"):  # NumPy scalars and arrays, without importing NumPy
        convert = getattr(value, method, None)
        if callable(convert) and (method == "tolist" or getattr(value, "ndim", None) == 0):
            converted: object = convert()
            if type(converted) is not type(value):  # else it has no plain form, as a `longdouble`
                return plain_json(converted)
    raise _not_json(value)


def described(value: object) -> str:
    """Return the type and the beginning of a value, for a message, whatever it is."""
    try:
        shown = ascii(str(value))[1:-1][:_SHOWN]
    except RecursionError:
        shown = "nested too deep to be shown"
    except (ValueError, TypeError, AttributeError, RuntimeError):  # of its own `__str__`
        shown = "cannot be shown"
    return f"{type(value).__name__}: {shown}"


def _has_no_plain_form(value: object) -> bool:
    """Tell whether NumPy would give another thing for it: spans of time as bare numbers, what is masked as it was."""
    if getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M"):
        return True
    return getattr(value, "ndim", None) == 0 and bool(getattr(value, "mask", False))


def _not_json(value: object) -> InvalidInputError:
    return InvalidInputError("a value cannot be stored", expected="JSON values", received=described(value))


def _plain_table(table: Mapping[object, object]) -> dict[str, object]:
    plain = {str.__str__(key) if isinstance(key, str) else str(key): plain_json(entry) for key, entry in table.items()}
    if len(plain) < len(table):
        raise InvalidInputError(
            "a table cannot be stored",
            expected="names that differ as texts",
            received=", ".join(ascii(key) for key in table)[:80],
        )
    return plain
