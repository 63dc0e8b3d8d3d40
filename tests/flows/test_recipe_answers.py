"""Whatever a recipe does to the pipe of its answers, the command ends with the answer or with a reason."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flows_helpers import make_project

from noa.errors import InvalidInputError, RecipeError, TrainingError
from noa_flows import recipe_process
from noa_flows._recipe_answers import read_answer
from noa_flows.recipe_process import ask_recipe
from noa_training import JobRequest

# Before `data` runs, `stray` has the pipes by which the process was given its questions and gives its answers.
STRAY = """
import json, os, sys, time
from dataclasses import replace
plain = data
frame = sys._getframe()
while "answers" not in frame.f_locals:
    frame = frame.f_back
answers = frame.f_locals["answers"].fileno()
message = frame.f_locals["message"]


def data(rows=240):
    stray()
    return plain(rows)


recipe = replace(recipe, data=data)
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    yield make_project(tmp_path / "project").root


def ask(root: Path, stray: str) -> Any:
    recipe = root / "recipe.py"
    recipe.write_text(recipe.read_text() + STRAY + "\n\ndef stray():\n" + stray)
    request = JobRequest(recipe="recipe.py", root=root, backend="torch")
    asked = {"request": {"recipe": "recipe.py", "root": str(root), "backend": "torch"}}
    return ask_recipe(request, "data", asked)


@pytest.mark.parametrize("junk", [b"z", b'{"value": 7}', b'{"number": 1}\n' * 3, b"[" * 70_000])
def test_what_a_recipe_writes_among_its_answers_is_passed_over(project: Path, junk: bytes) -> None:
    assert ask(project, f"    os.write(answers, {junk!r})\n")["rows"] == 80


def test_a_line_without_end_ends_the_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_process, "_LONGEST_ANSWER", 1 << 20)
    with pytest.raises(TrainingError, match="without an answer") as caught:
        ask(project, "    while True:\n        os.write(answers, b'z' * 4096)\n")
    assert caught.value.received is not None and "a line of more than 1 MiB" in caught.value.received


def test_a_process_that_closes_its_pipes_and_goes_on_is_ended(project: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(TrainingError, match="without an answer") as caught:
        ask(
            project,
            "    open(__file__ + '.pid', 'w').write(str(os.getpid()))\n"
            "    os.closerange(3, 256)\n    time.sleep(1000)\n",
        )
    assert time.monotonic() - begun < 60
    assert caught.value.received is not None and "it closed the pipe" in caught.value.received
    assert not Path("/proc", (project / "recipe.py.pid").read_text()).exists()


def test_the_pipes_are_not_inherited_by_what_the_recipe_starts(project: Path) -> None:
    seen = project / "seen"
    ask(
        project,
        f"    import subprocess\n    pipe = os.readlink(f'/proc/self/fd/{{answers}}')\n"
        f"    found = subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True, text=True, close_fds=False)\n"
        f"    open({str(seen)!r}, 'w').write(json.dumps([pipe, found.stdout]))\n",
    )
    pipe, found = json.loads(seen.read_text())
    assert pipe.startswith("pipe:") and found and pipe not in found


@pytest.mark.parametrize("forged", ["{}", '{"value": 7}', '{"error": "x"}', "7", "no JSON", "[" * 60_000])
def test_an_answer_that_cannot_be_read_names_the_recipe(project: Path, forged: str) -> None:
    line = f"f\"\\n{{message['token']}} \" + {forged!r} + '\\n'"
    with pytest.raises(TrainingError, match="gave no valid answer in the step `data`") as caught:
        ask(project, f"    os.write(answers, ({line}).encode())\n")
    assert caught.value.where == "recipe.py"


@pytest.mark.parametrize(
    ("step", "value"),
    [
        *[(step, 7) for step in ("plan", "finished", "rows", "evaluate", "convert", "verify", "example", "measure")],
        ("latency", [1]),
        ("metrics", {"dataset_digest": "d", "metrics": {"a": "b"}}),
    ],
)
def test_each_step_has_its_answers_read_before_they_are_used(step: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match="no valid answer"):
        read_answer(step, json.dumps({"value": value}))


def test_an_error_in_the_recipe_stays_that_error(project: Path) -> None:
    with pytest.raises(RecipeError, match="`data` failed"):
        ask(project, "    os.write(answers, b'z')\n    raise ValueError('no rows')\n")
