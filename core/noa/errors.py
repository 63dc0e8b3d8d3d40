"""The errors of noa, one tree for every room.

    NoaError
    ├── InvalidInputError        the caller gave something wrong (file, argument, tensor)
    │   ├── SettingsError        a setting is unknown, malformed or contradictory
    │   ├── RecipeError          a recipe cannot be trained as it is written
    │   └── SignatureError       a tensor does not match the model's signature
    ├── NotFoundError            a model, version, alias, recipe, file or deployment does not exist
    ├── ConflictError            somebody else was first: alias moved, job running, port in use
    ├── GateRefusedError         the gate's policy does not allow the promotion
    ├── IntegrityError           bytes or records differ from what was sealed
    ├── ConversionError          a model cannot be expressed in the target format, or differs in it
    ├── TrainingError            a job ended without a model
    ├── ServiceError             a process we supervise did not start, answer or stop
    ├── StorageError             the disk or database refused (full, read-only, locked)
    └── DependencyMissingError   an extra is not installed; the message holds the install command

An error keeps its facts as attributes. Its text is one line: what happened, where, what was expected and received, and
what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class NoaError(Exception):
    """Base of all errors that noa raises on purpose.

    `what` is the only required part. `facts` are kept as attributes of `facts` for programs; the text is for people.
    """

    kind: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        received: object = None,
        remedy: str | None = None,
        **facts: object,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = None if expected is None else str(expected)
        self.received = None if received is None else str(received)
        self.remedy = remedy
        self.facts = facts

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.what} ({self.where})"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.received is not None:
            text += f"; received {self.received}"
        if self.remedy is not None:
            text += f". {self.remedy}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword arguments would be lost by the default, which calls cls(*args): errors cross process borders.
        return (_rebuild, (type(self), self.what, self.to_dict(), self.facts))

    def to_dict(self) -> dict[str, str | None]:
        """Return the parts as plain strings, as `--json` and HTTP bodies show them."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "received": self.received,
            "remedy": self.remedy,
        }


class InvalidInputError(NoaError):
    """The caller gave something that cannot be used as it is."""


class SettingsError(InvalidInputError):
    """A setting is unknown, malformed or contradicts another."""


class RecipeError(InvalidInputError):
    """A recipe cannot be trained as it is written; names the field."""


class SignatureError(InvalidInputError):
    """A tensor does not match the signature; `facts["field"]` names it."""


class NotFoundError(NoaError):
    """The named thing does not exist."""


class ConflictError(NoaError):
    """Somebody else was first."""


class GateRefusedError(NoaError):
    """The gate does not allow the promotion; `facts["report"]` holds the verdicts."""


class IntegrityError(NoaError):
    """Bytes or records are not what was sealed; `facts["file"]` names the first that differs."""


class ConversionError(NoaError):
    """A model cannot be expressed in the target format, or computes something else there."""


class TrainingError(NoaError):
    """A job ended without a model."""


class ServiceError(NoaError):
    """A supervised process did not start, answer or stop."""


class StorageError(NoaError):
    """The disk or the database refused."""


class DependencyMissingError(NoaError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package `{package}`, which is not installed",
            remedy=f'Install it with: pip install "noa[{extra}]"',
            package=package,
            extra=extra,
        )
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_missing, (self.package, self.extra, self.purpose))


def _rebuild(cls: type[NoaError], what: str, parts: dict[str, str | None], facts: dict[str, object]) -> NoaError:
    names = ("where", "expected", "received", "remedy")
    return cls(what, **{name: parts[name] for name in names}, **facts)  # type: ignore[arg-type]


def _rebuild_missing(package: str, extra: str, purpose: str) -> DependencyMissingError:
    return DependencyMissingError(package, extra=extra, purpose=purpose)
