"""Who acts, as the ledger names it: a user, or a flow that a user started; and whether two of them are one person.

A ledger may hold actors of an older noa, whose flows wrote `user@host`.
"""

from __future__ import annotations

from collections.abc import Iterable
from unicodedata import normalize

from noa.current_user import current_user

_FLOW, _BY = "flow ", " by "


def flow_actor(run: str) -> str:
    """Return who acts in the flow run of this name: the run, and the user whose rights it has."""
    return f"{_FLOW}{run}{_BY}{current_user()}"


def user_of(actor: str) -> str:
    """Return the user behind an actor."""
    return actor.rpartition(_BY)[2] if actor.startswith(_FLOW) and _BY in actor else actor


def is_same_user(first: str, second: str) -> bool:
    """Tell whether the same user is behind two actors or principals, however they are spelled.

    Case, spaces around and the composition of characters tell nobody apart. A name with a host or domain is the one
    without it too: `ada@build-7` is `ada`, but `ada@a.org` is not `ada@b.org`.
    """
    one, other = _compared(first), _compared(second)
    return one == other or one.startswith(f"{other}@") or other.startswith(f"{one}@")


def distinct_users(actors: Iterable[str]) -> list[str]:
    """Return one actor for each user: as many as there are people at most.

    Of spellings of one name the first counts. Of `ada`, `ada@a.org` and `ada@b.org` the last two do.
    """
    spelled: dict[str, str] = {}
    for actor in actors:
        spelled.setdefault(_compared(actor), actor)
    return [actor for name, actor in spelled.items() if not any(other.startswith(f"{name}@") for other in spelled)]


def written_user(actor: str) -> str:
    """Return a name as it is kept: without spaces around it, its characters composed."""
    return normalize("NFC", actor.strip())


def _compared(actor: str) -> str:
    return normalize("NFKC", normalize("NFKC", user_of(actor.strip()).strip()).casefold())
