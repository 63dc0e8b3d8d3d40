"""One person stays one person, whether a command or a flow acts for them."""

from __future__ import annotations

import pytest

from noa.actors import distinct_users, flow_actor, is_same_user, user_of, written_user
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


@pytest.mark.parametrize(
    "other", ["Ada", "ada ", " ADA", "ada@B", "Ada@build-7", "\uff41da", "flow brisk-otter by Ada "]
)
def test_a_name_is_the_same_however_it_is_spelled(other: str) -> None:
    assert is_same_user("ada", other)
    assert len(distinct_users(["ada", other])) == len(distinct_users([other, "ada"])) == 1


def test_composed_and_combined_characters_are_one_name() -> None:
    assert is_same_user("jos\u00e9", "jose\u0301")
    assert not is_same_user("jose", "jose\u0301")
    assert written_user(" jose\u0301\n") == "jos\u00e9"


def test_people_are_counted_and_not_spellings() -> None:
    assert distinct_users([]) == []
    assert distinct_users(["ada", "Ada", "ada ", "bob"]) == ["ada", "bob"]
    assert distinct_users(["ada", "ada@a.org", "ada@b.org", "ADA@A.org"]) == ["ada@a.org", "ada@b.org"]
    assert distinct_users(["ada@a.org", "ada@b.org"]) == ["ada@a.org", "ada@b.org"]
