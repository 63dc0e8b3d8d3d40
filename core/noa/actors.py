"""Who acts, as the ledger names it: a user, or a flow that a user started; and whether two of them are one person.

A ledger may hold actors of an older noa, whose flows wrote `user@host`.
"""

from __future__ import annotations

from noa.current_user import current_user

_FLOW, _BY = "flow ", " by "


def flow_actor(run: str) -> str:
    """Return who acts in the flow run of this name: the run, and the user whose rights it has."""
    return f"{_FLOW}{run}{_BY}{current_user()}"


def user_of(actor: str) -> str:
    """Return the user behind an actor."""
    return actor.rpartition(_BY)[2] if actor.startswith(_FLOW) and _BY in actor else actor


def is_same_user(first: str, second: str) -> bool:
    """Tell whether the same user is behind two actors or principals.

    A name with a host or domain is the one without it too: `ada@build-7` is `ada`, but `ada@a.org` is not `ada@b.org`.
    """
    one, other = user_of(first), user_of(second)
    return one == other or one.startswith(f"{other}@") or other.startswith(f"{one}@")
