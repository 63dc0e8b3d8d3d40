"""A space is read and checked as a whole before anything is searched, however its keys are written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from noa.errors import SettingsError
from noa.settings import ParameterSettings, Settings, load_settings


def load(folder: Path, text: str, *overrides: str) -> Settings:
    (folder / "noa.toml").write_text(f"[sweeps.digits]\n{text}")
    return load_settings(folder, environ={}, user_file=folder / "none", overrides=overrides).settings


def test_keys_with_and_without_quotes_are_the_same(tmp_path: Path) -> None:
    quoted = load(tmp_path, '[sweeps.digits.space]\n"optimizer.learning_rate" = { low = 1e-4, high = 0.1, log = true }')
    plain = load(tmp_path, "[sweeps.digits.space]\noptimizer.learning_rate = { low = 1e-4, high = 0.1, log = true }")
    tables = load(tmp_path, "[sweeps.digits.space.optimizer.learning_rate]\nlow = 1e-4\nhigh = 0.1\nlog = true")
    assert quoted == plain == tables
    assert list(quoted.sweeps["digits"].parameters) == ["optimizer.learning_rate"]


def test_a_key_that_is_called_as_a_part_of_an_entry_is_a_key(tmp_path: Path) -> None:
    sweep = load(tmp_path, "[sweeps.digits.space]\ndata.low = { low = 1, high = 4 }").sweeps["digits"]
    assert sweep.parameters == {"data.low": ParameterSettings(low=1, high=4)}


def test_one_part_of_an_entry_can_be_overridden(tmp_path: Path) -> None:
    text = '[sweeps.digits.space]\n"optimizer.learning_rate" = { low = 1e-4, high = 0.1 }'
    sweep = load(tmp_path, text, "sweeps.digits.space.optimizer.learning_rate.high=0.5").sweeps["digits"]
    assert sweep.parameters["optimizer.learning_rate"] == ParameterSettings(low=1e-4, high=0.5)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{ low = 2, high = 1 }", "`low` is 2 and above `high`, 1"),
        ("{ low = 0.0, high = 1.0, log = true }", "begins above 0"),
        ("{ low = 1 }", "`high` missing"),
        ("{ log = true }", "`low` and `high` missing"),
        ("{ choices = [1, 2], low = 1 }", "`choices` and parts of a range"),
        ("{ choices = [1, 2, 1.0] }", "1.0 twice"),
        ("{ low = 2, high = 9, step = 2 }", "never meets"),
        ("{ low = 2, high = 8, step = 0 }", "must be above 0"),
        ("{ low = 1, high = 8, step = 1, log = true }", "`step` and `log`"),
        ("{ low = '1', high = 8 }", "`low` is not valid"),
        ("{ low = 1, high = 8, lgo = true }", "`lgo` is no part of it"),
        ("{}", "`low` and `high` missing"),
        ("{ choices = [{ a = 1 }] }", "`choices` is not valid"),
        ("4", "is no table"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_key(entry: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, f"[sweeps.digits.space]\nmodel.hidden = {entry}\n")
    assert words in caught.value.what and "`model.hidden`" in caught.value.what
    assert str(caught.value.where).startswith(f"{tmp_path / 'noa.toml'}:3:")


def test_a_wrong_limit_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`sweeps.digits.trials` is not valid") as caught:
        load(tmp_path, "trials = 0\n")
    assert caught.value.where == f"{tmp_path / 'noa.toml'}:2:1"
    with pytest.raises(SettingsError, match=r"at most 32"):
        load(tmp_path, "[sweeps.digits.space]\n" + "\n".join(f"data.k{n} = {{ low = 0, high = 1 }}" for n in range(33)))


@pytest.mark.parametrize(
    ("entry", "size", "ends"),
    [
        (ParameterSettings(low=2, high=10, step=2), 5, (2, 10)),
        (ParameterSettings(low=2, high=10), 9, (2, 10)),
        (ParameterSettings(low=0.1, high=0.7, step=0.1), 7, (0.1, 0.7)),
        (ParameterSettings(low=0.1, high=0.7), math.inf, (0.1, 0.7)),
        (ParameterSettings(low=3, high=3), 1, (3,)),
        (ParameterSettings(low=1, high=2.5), math.inf, (1.0, 2.5)),
        (ParameterSettings(choices=((32,), (32, 64))), 2, ((32,), (32, 64))),
    ],
)
def test_an_entry_knows_its_size_and_its_ends(entry: ParameterSettings, size: float, ends: tuple[object, ...]) -> None:
    assert entry.size == size
    assert [(type(end), end) for end in entry.ends()] == [(type(end), end) for end in ends]
    assert ParameterSettings.model_validate(entry.to_dict()) == entry
