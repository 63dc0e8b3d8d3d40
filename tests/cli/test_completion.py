"""What the shells get when TAB is pressed, by the protocol that they speak."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from noa.formats import format_names
from noa_cli.__main__ import run
from warm_client import WarmProcess

Tab: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


def shells_words(words: str, **variables: str) -> dict[str, str]:
    """Return the environment in which bash asks to complete the last word: words in one text, and which of them."""
    return {
        **os.environ,
        "_NOA_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(shlex.split(words)) - (not words.endswith(" "))),
        **variables,
    }


@pytest.fixture
def press_tab(warm_noa: WarmProcess) -> Tab:
    """Completes the last word of a command line in a folder, with further variables of the environment."""

    def press(folder: Path, words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return warm_noa.noa(folder=folder, environment=shells_words(words, **variables))

    return press


REFERENCES = ["digits", "digits@champion", "digits/3", "digits/2", "digits/1"]


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("noa models show ", REFERENCES),
        ("noa models show dig", REFERENCES),
        ("noa models show digits/", ["digits/3", "digits/2", "digits/1"]),
        ("noa models show x", []),
        ("noa models history ", ["digits"]),
        ("noa convert ", REFERENCES),
        ("noa convert digits/1 --to t", ["torch"]),
        ("noa convert digits/1 --to ", list(format_names())),
        ("noa convert recip", []),
        ("noa convert form", ["formats/"]),
        ("noa convert x.json --from x", ["xgboost"]),
        ("noa verify digits/1 ", REFERENCES),
        ("noa predict ", ["numbers", *REFERENCES[1:]]),
        ("noa serve digits/1 n", ["numbers"]),
        ("noa train ", ["noisy"]),
        ("noa sweep ", ["noisy", "show"]),
        ("noa sweep show ", []),
        ("noa sweep noisy --space optimizer.l", ["optimizer.learning_rate="]),
        ("noa flows schedule no", ["noisy"]),
        ("noa flows run ", ["noisy"]),
        ("noa config explain serving.po", ["serving.port", "serving.poll_interval_s"]),
        ("noa config explain serv", None),
        ("noa models lis", ["list"]),
        ("noa init --name ", []),
        ("noa train noisy --backend ", ["torch", "jax", "torch,jax"]),
        ("noa models promote digits/1 --alias ", ["champion"]),
        ("noa -o serving.po", ["serving.port=", "serving.poll_interval_s="]),
        ("noa train noisy -o serving.po", ["serving.port=", "serving.poll_interval_s="]),
        ("noa -o serving.port=", []),
        ("noa train noisy --set ep", ["epochs="]),
        ("noa flows run noisy --set optimizer.l", ["optimizer.learning_rate="]),
        ("noa train recipe.py --set see", ["seed="]),
        ("noa train nosuch --set ep", []),
        ("noa train --set ep", []),
        ("noa -C ", ["formats/"]),
        ("noa models list --directory formats/1/t", ["formats/1/torch/"]),
        ("noa -C reci", []),
    ],
)
def test_each_parameter_is_completed_by_what_it_means(
    registered: Path, press_tab: Tab, words: str, offers: list[str] | None
) -> None:
    result = press_tab(registered, words)
    assert (result.returncode, result.stderr) == (0, "")
    found = result.stdout.split()
    if offers is None:
        assert {"serving", "serving.host", "serving.port"} <= set(found)
        assert all(offer.startswith("serv") for offer in found)
    else:
        assert found == offers


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("noa models show digits @", ["@champion"]),
        ("noa models show digits @ ch", ["@champion"]),
        ("noa models show digits @ x", []),
        ("noa serve digits/1 digits @ c", ["@champion"]),
        ("noa convert digits @ champion --to o", [name for name in format_names() if name.startswith("o")]),
        ("noa convert digits/1 : to", ["torch"]),
        ("noa verify digits @ champion : j", ["jax"]),
        ("noa predict digits @ champion --format t", ["torch"]),
        ('noa models promote digits @ champion -m "a @ b" --al', ["--alias"]),
        ("noa -o serving.port = 0 models history ", ["digits"]),
        ("noa -o serving.port = ", []),
        ("noa models promote digits/1 --alias = ch", ["champion"]),
    ],
)
def test_bash_breaks_words_at_the_alias_and_replaces_the_last_part(
    registered: Path, press_tab: Tab, words: str, offers: list[str]
) -> None:
    assert press_tab(registered, words).stdout.split() == offers


def test_the_keys_of_a_recipe_are_those_that_training_knows(tmp_path: Path) -> None:
    from noa_cli._recipe_keys import recipe_keys
    from noa_training import load_recipe
    from noa_training.overrides import _known_keys  # pyright: ignore[reportPrivateUsage]  # what an error lists

    text = """
from noa_training import SGD, AdamW, Dataset, EarlyStopping, Recipe, WarmupCosine, mlp

def data(rows: int = 9, fraction: float = 1.0) -> Dataset:
    raise NotImplementedError

recipe = Recipe(name="one", data=data, model=mlp(hidden=(4,)), objective="cross_entropy", metrics=("accuracy",), {})
"""
    parts = (
        "",
        "optimizer=SGD(), data_params={'rows': 9, 'fraction': 0.5}",
        "optimizer=AdamW(), schedule=WarmupCosine(), early_stopping=EarlyStopping()",
    )
    for number, part in enumerate(parts):
        file = tmp_path / f"recipe_{number}.py"
        file.write_text(text.format(part))
        known = _known_keys(load_recipe(str(file), root=tmp_path))
        assert set(recipe_keys(file)) == {key for key in known if not key.startswith("model.")}


def test_other_shells_get_whole_references(registered: Path, press_tab: Tab) -> None:
    result = press_tab(
        registered,
        "",
        _NOA_COMPLETE="complete_fish",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_ARGS="noa models show digits@",
    )
    assert result.stdout.split() == ["digits@champion"]


@pytest.mark.parametrize("words", ["noa -C {} models show ", "noa models show -C {} "])
def test_the_project_is_the_one_of_the_command_line(
    registered: Path, press_tab: Tab, tmp_path: Path, words: str
) -> None:
    assert press_tab(tmp_path, words.format(registered)).stdout.split() == REFERENCES


def test_nothing_is_written_while_nobody_or_somebody_uses_the_registry(registered: Path, press_tab: Tab) -> None:
    from noa.settings import load_settings
    from noa_registry import Registry

    before = sorted(registered.rglob("*"))
    assert press_tab(registered, "noa models show digits@").stdout
    assert sorted(registered.rglob("*")) == before
    with Registry.open(load_settings(registered).settings.registry) as registry:
        registry.models()
        in_use = sorted(registered.rglob("*"))
        assert press_tab(registered, "noa models show ").stdout.split() == REFERENCES
        assert sorted(registered.rglob("*")) == in_use


def test_no_project_no_database_and_broken_ones_offer_nothing_and_say_nothing(
    registered: Path, press_tab: Tab, tmp_path: Path
) -> None:
    for number, (settings, database) in enumerate(
        [(None, None), ("", None), ("[serving]\nprot = 1\n", None), ("= =", None), ("", b""), ("", b"no database" * 99)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        if settings is not None:
            (folder / "noa.toml").write_text(settings)
        if database is not None:
            (folder / ".noa").mkdir()
            (folder / ".noa" / "noa.db").write_bytes(database)
        before = sorted(folder.rglob("*"))
        for words in ("noa models show ", "noa train ", "noa predict digits @"):
            result = press_tab(folder, words)
            assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", ""), (number, words)
        assert sorted(folder.rglob("*")) == before
    moved = tmp_path / "moved"
    shutil.copytree(registered, moved)
    (moved / "noa.toml").write_text('[registry]\ndatabase_url = "sqlite:///elsewhere.db"\n')
    assert press_tab(moved, "noa models show ").stdout.strip() == ""


def test_runs_are_offered_by_their_beginning_the_newest_first(
    tmp_path: Path, add_empty_registry: Callable[[Path], None], press_tab: Tab
) -> None:
    from noa.settings import load_settings
    from run_kit import T0, Made, write_runs

    (tmp_path / "noa.toml").write_text("")
    add_empty_registry(tmp_path)
    runs = [Made(f"{number:x}" * 32, "r", "FINISHED", T0 + number, T0 + number) for number in range(1, 4)]
    gone = Made("ab" * 16, "r", "FINISHED", T0 + 99, T0 + 99, is_deleted=True)
    write_runs(load_settings(tmp_path).settings.registry, [*runs, gone])
    for words in ("noa runs show ", "noa runs compare 111 ", "noa runs plot "):
        assert press_tab(tmp_path, words).stdout.split() == ["3" * 12, "2" * 12, "1" * 12]
    assert press_tab(tmp_path, "noa runs show 2").stdout.split() == ["2" * 12]
    assert press_tab(tmp_path, f"noa runs show {'2' * 13}").stdout.split() == ["2" * 32]
    assert press_tab(tmp_path, "noa runs show x").stdout.strip() == ""


def test_completion_loads_no_room_and_no_database_toolkit(registered: Path) -> None:
    environment = shells_words("noa models show ", PYTHONPROFILEIMPORTTIME="1")
    command = [sys.executable, "-m", "noa_cli"]
    result = subprocess.run(command, cwd=registered, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == REFERENCES
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "noa_cli" in loaded
    rooms = {"noa_registry", "noa_conversion", "noa_training", "noa_serving", "noa_flows"}
    assert not loaded & (rooms | {"sqlalchemy", "numpy", "mlflow", "torch", "jax", "prefect", "bentoml", "onnx"})


def test_what_is_in_the_trash_is_offered_for_restoring_alone(registered: Path, press_tab: Tab, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(registered, project)
    assert run(["models", "delete", "digits/3", "--reason", "old", "--directory", str(project)]) == 0
    offers = press_tab(project, "noa models promote digits/").stdout.split()
    assert offers == ["digits/2", "digits/1"]
    assert press_tab(project, "noa models restore ").stdout.split() == ["digits/3"]


@pytest.mark.parametrize(
    ("shell", "part"), [("fish", "complete --command noa"), ("zsh", "#compdef noa"), ("bash", "complete -o")]
)
def test_the_completion_of_a_shell_that_is_named_is_printed(
    shell: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--show-completion", shell]) == 0
    assert part in capsys.readouterr().out
    assert run([f"--show-completion={shell}"]) == 0
    assert part in capsys.readouterr().out
    assert run(["--show-completion", "tcsh"]) == 1
    assert "bash, zsh, fish" in capsys.readouterr().err
