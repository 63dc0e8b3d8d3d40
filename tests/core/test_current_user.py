from __future__ import annotations

import os
import pwd

import pytest

from noa.current_user import current_user


def test_the_environment_does_not_say_who_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "ceo")
    assert current_user() == name


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 2_000_000_011)
    assert current_user() == "uid-2000000011"
