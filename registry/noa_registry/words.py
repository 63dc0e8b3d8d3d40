"""Who acts and why, and what is said about a version: checked once, before any of it is written."""

from __future__ import annotations

from typing import Final

from noa.errors import InvalidInputError
from noa.texts import ALL_BUT_NUL, check_text, check_texts_in
from noa_registry.versions import VersionDraft

# MLflow's columns on PostgreSQL hold so many characters of a user, a tag's name and a description.
_MOST_ACTOR: Final = 256
_MOST_KEY: Final = 250
_MOST_DESCRIPTION: Final = 5000
_MOST_REASON: Final = 4 << 10


def check_actor(actor: str, *, field: str = "actor") -> None:
    """Raise `InvalidInputError` if `actor` is empty or no plain name: the ledger must be able to tell who it was."""
    check_text(actor, field=field, most_bytes=_MOST_ACTOR, controls="", formats=False)
    if not actor.strip():
        raise InvalidInputError(
            "nobody is named as the actor", expected="a user or service name", received=repr(actor), field=field
        )


def check_reason(reason: str, *, expected: str) -> None:
    """Raise `InvalidInputError` if no reason is given, or one that cannot be kept; `expected` says what it is for."""
    check_text(reason, field="reason", most_bytes=_MOST_REASON)
    if not reason.strip():
        raise InvalidInputError("no reason is given", expected=expected, field="reason")


def check_draft_texts(draft: VersionDraft) -> None:
    """Raise `InvalidInputError` if a text of a draft cannot be kept; names the field."""
    single = {"run_id": draft.run_id, "git_commit": draft.git_commit, "dataset_digest": draft.dataset_digest}
    for field, text in single.items():
        if text is not None:
            check_text(text, field=field, most_bytes=_MOST_REASON, controls="")
    for field, table in (("tags", draft.tags), ("params", draft.params), ("environment", draft.environment)):
        check_texts_in(table, field=field)
    _check_length("description", draft.description, _MOST_DESCRIPTION)
    check_text(draft.description, field="description", controls=ALL_BUT_NUL)
    for key in draft.tags:
        check_text(key, field="name of a tag", controls=ALL_BUT_NUL)
        _check_length("name of a tag", key, _MOST_KEY)


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidInputError(
            f"the {field} is too long",
            expected=f"at most {most} characters",
            received=f"{len(text)} characters",
            field=field,
        )
