"""One person stays one person, whether a command or a flow acts for them."""

from __future__ import annotations

import pytest

from noa.actors import flow_actor, is_same_user, user_of
from noa.current_user import current_user


def test_a_flow_acts_for_its_user() -> None:
    assert flow_actor("brisk-otter") == f"flow brisk-otter by {current_user()}"
    assert user_of(flow_actor("made by hand")) == current_user()
    assert is_same_user(flow_actor("brisk-otter"), current_user())


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ada", "ada", True),
        ("ada", "bob", False),
        ("ada", "flow brisk-otter by ada", True),
        ("bob", "flow brisk-otter by ada", False),
        ("ada", "flow brisk-otter by ada@build-7", True),  # of an older noa
        ("ada", "ada@build-7", True),
        ("ada@a.org", "ada@b.org", False),
        ("ad", "ada", False),
        ("flow ada", "ada", False),
    ],
)
def test_two_actors_are_compared_by_their_users(first: str, second: str, expected: bool) -> None:
    assert is_same_user(first, second) is expected
    assert is_same_user(second, first) is expected
