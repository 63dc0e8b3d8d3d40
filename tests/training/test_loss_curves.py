"""Loss curves of two jobs: read from their events, compared, drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from noa.errors import InvalidInputError, NotFoundError
from noa_training.events import CheckpointWritten, Step
from noa_training.loss_curve_plot import check_plot, draw_figure, save_plot
from noa_training.loss_curves import LossCurve, compare_curves, read_loss_curve, sparkline


def step(number: int, loss: float) -> Step:
    return Step(
        job_id="j",
        at=0.0,
        step=number,
        epoch=1,
        total_steps=100,
        loss=loss,
        learning_rate=0.1,
        samples_per_s=1.0,
        eta_s=0.0,
    )


def curve(name: str, *points: tuple[int, float]) -> LossCurve:
    return LossCurve(name=name, steps=tuple(s for s, _ in points), losses=tuple(v for _, v in points))


def test_steps_done_again_after_a_kill_count_once(tmp_path: Path) -> None:
    events = [step(10, 3.0), step(20, 2.5), step(30, 2.0), step(15, 2.7), step(20, 2.4)]
    lines = [event.to_json() for event in events]
    lines.insert(2, CheckpointWritten(job_id="j", at=0.0, step=12, checkpoint="c", seconds=0.1).to_json())
    lines.insert(4, lines[0][:30])  # the kill cut this line
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert read_loss_curve(tmp_path, name="torch") == curve("torch", (10, 3.0), (15, 2.7), (20, 2.4))


def test_a_folder_without_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no events"):
        read_loss_curve(tmp_path, name="torch")


def test_differences_are_relative_and_at_common_steps() -> None:
    found = compare_curves(
        [curve("torch", (5, 2.0), (10, 1.0), (20, 0.5)), curve("jax", (5, 2.0), (10, 1.1), (20, 0.75), (30, 0.1))]
    )
    assert found.steps == (5, 10, 20)
    assert found.differences == pytest.approx((0.0, 0.1, 0.5))
    assert found.early == pytest.approx(0.1) and found.largest == (20, pytest.approx(0.5))
    assert found.to_dict()["largest_difference_step"] == 20


def test_without_a_point_in_the_first_steps_nothing_is_said_of_them() -> None:
    assert compare_curves([curve("a", (20, 1.0)), curve("b", (20, 1.0))]).early is None


@pytest.mark.parametrize("curves", [[curve("a", (1, 1.0))], [curve("a", (1, 1.0)), curve("b", (2, 1.0))]])
def test_curves_without_anything_in_common_are_refused(curves: list[LossCurve]) -> None:
    with pytest.raises(InvalidInputError):
        compare_curves(curves)


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [
        ([0.0, 0.5, 1.0], 8, "▁▅█"),
        ([1.0, 1.0], 8, "▁▁"),
        ([0.0, 0.0, 1.0, 1.0], 2, "▁█"),
        ([], 8, ""),
    ],
)
def test_a_sparkline_has_a_block_for_each_part_of_the_values(values: list[float], width: int, shown: str) -> None:
    lowest, highest = (min(values), max(values)) if values else (0.0, 0.0)
    assert sparkline(values, width=width, lowest=lowest, highest=highest) == shown


COMPARED = compare_curves(
    [curve("torch", (5, 2.0), (10, 1.0), (20, 0.5)), curve("jax", (5, 2.0), (10, 1.001), (20, 0.52))]
)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_picture_is_the_same_bytes_each_time(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{number}.{kind}" for number in range(2)]
    for path in paths:
        save_plot(COMPARED, path, title="digits: torch and jax")
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    assert content.startswith(b"\x89PNG") if kind == "png" else ElementTree.fromstring(content).tag.endswith("svg")


def test_both_curves_and_their_difference_are_drawn_to_scale() -> None:
    upper, lower = draw_figure(COMPARED, title="t").axes
    assert [list(line.get_xydata()[:, 1]) for line in upper.lines] == [[2.0, 1.0, 0.5], [2.0, 1.001, 0.52]]
    assert lower.get_yscale() == "log"
    assert list(lower.lines[0].get_xydata()[1:, 1]) == pytest.approx([0.001, 0.04])
    legend = upper.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["torch: 0.5 at the end", "jax: 0.52 at the end"]


def test_another_ending_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="written as a picture"):
        check_plot(tmp_path / "curves.pdf")
