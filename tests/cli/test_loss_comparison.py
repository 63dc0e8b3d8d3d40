"""`noa train --compare`: what is refused before any training, and what people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noa_cli.__main__ import run
from noa_cli._loss_comparison import LossComparison, show_comparison
from noa_training.loss_curves import LossCurve, compare_curves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare"], "needs two backends"),
        (["--compare", "--backend", "jax"], "needs two backends"),
        (["--compare", "--backend", "torch,jax", "--plot", "curves.pdf"], "a name ending in .png or .svg"),
        (["--plot", "curves.png"], "Add `--compare`"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_training(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noa.toml").write_text('[project]\nname = "p"\n[recipes.r]\npath = "recipe.py"\nbackends = ["torch"]\n')
    assert run(["train", "r", *arguments, "--json", "--directory", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["noa.toml"]
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err.splitlines()[-1])
    assert message in " ".join(str(part) for part in error.values())


def test_people_read_both_curves_on_one_scale_and_how_far_they_are_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = [
        LossCurve(name="torch", steps=(5, 10, 20), losses=(2.0, 1.0, 0.0625)),
        LossCurve(name="jax", steps=(5, 10, 20), losses=(2.0, 1.001, 0.125)),
    ]
    show_comparison(LossComparison(curves=compare_curves(curves), picture=tmp_path / "curves.png"))
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()[:1] in (["torch"], ["jax"])}
    assert rows["torch"][1:] == ["█▄▁", "2", "0.0625", "0.0625", "3"]
    assert rows["jax"][1:] == ["█▄▁", "2", "0.125", "0.125", "3"]
    assert "relative difference: 0.001 in the first 10 steps, 1 at step 20, where they are furthest apart" in shown
    assert str(tmp_path / "curves.png") in shown
