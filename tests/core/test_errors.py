"""Errors keep their facts, read well, and cross process borders."""

from __future__ import annotations

import inspect
import pickle
import re

import noa
import noa.errors
from noa.errors import DependencyMissingError, NoaError, SignatureError


def test_the_text_says_what_where_expected_received_and_remedy() -> None:
    error = NoaError(
        "no version `7`", where="noa.db", expected="1 to 6", received=7, remedy="List with `noa models list`"
    )
    assert str(error) == "no version `7` (noa.db); expected 1 to 6; received 7. List with `noa models list`"


def test_facts_are_kept_and_survive_pickling() -> None:
    error = SignatureError("wrong", field="image", expected="float32")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is SignatureError
    assert again.facts == {"field": "image"}
    assert str(again) == str(error)


def test_a_missing_extra_says_how_to_install_it_also_after_pickling() -> None:
    error = pickle.loads(pickle.dumps(DependencyMissingError("torch", extra="torch", purpose="Training on torch")))
    assert 'pip install "noa[torch]"' in str(error)


def test_every_error_is_in_the_tree_of_the_docstring_and_in_the_shop_window() -> None:
    classes = {name for name, value in inspect.getmembers(noa.errors, inspect.isclass) if issubclass(value, NoaError)}
    drawn = set(re.findall(r"(\w+Error)\b", noa.errors.__doc__ or ""))
    assert classes == drawn
    assert classes <= set(noa.__all__)
