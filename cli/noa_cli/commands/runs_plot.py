"""`noa runs plot`: curves of a metric over steps or epochs, in the terminal or as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption
from noa_cli._runs import open_project_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noa_registry.runs import Curve

_HEIGHT: Final = 16
_WIDTH: Final = 100  # where nothing says how wide the output is
_Over: TypeAlias = Literal["step", "epoch"]


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Beginnings of ids, or names.")],
    metric: Annotated[
        str,
        typer.Option("--metric", metavar="NAME", help="A metric; `loss` is both `train.loss` and `validation.loss`."),
    ] = "loss",
    over: Annotated[_Over, typer.Option("--over", help="What the curves are drawn over.")] = "step",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a picture, FILE.png or FILE.svg.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the curves of a metric, of one run or several."""
    target = None if output is None else _target(output)
    with open_project_runs() as book:
        curves = book.curves(runs, metric, axis=over)
    if target is not None:
        from noa_registry.runs.curve_plot import save_curves

        save_curves(curves, target, metric=metric)
        console.note(f"The picture is in {target}")
    if as_json:
        console.print_json([curve.to_dict() for curve in curves])
    elif target is None:
        _print_curves(curves)


def _target(output: Path) -> Path:
    """Return the picture's file, whose name is checked before any work."""
    from noa.plain_paths import plain_path
    from noa_registry.runs.curve_plot import check_picture

    check_picture(output)
    return plain_path(current().directory / output)


def _print_curves(curves: Sequence[Curve]) -> None:
    from rich.text import Text

    from noa_cli._curve_drawing import STYLES, draw_curves, letter
    from noa_registry.runs.curve_plot import curve_labels

    out = console.out()
    has_colors = out.color_system is not None
    dots = _has_braille() and (has_colors or len(curves) == 1)
    keys = dict.fromkeys(curve.key for curve in curves)
    console.print_line(f"{', '.join(keys)} over {curves[0].axis}s")
    for index, (curve, label) in enumerate(zip(curves, curve_labels(curves), strict=True)):
        thinned = f", every {curve.every} steps" if curve.every > 1 else ""
        mark = "" if len(curves) == 1 else "── " if dots else f"{letter(index)}  "
        line = f"{mark}{label}: {_ends(curve)}{thinned}"
        console.print_line(line, STYLES[index % len(STYLES)] if dots and len(curves) > 1 else None)
    width = out.width if console.has_width() else _WIDTH
    drawn = draw_curves([(curve.x, curve.values) for curve in curves], width=width, height=_HEIGHT, dots=dots)
    for line in drawn:
        text = Text()
        for cell in line:
            text.append(cell.text, STYLES[cell.curve % len(STYLES)] if cell.curve is not None and dots else "")
        text.rstrip()
        out.print(text, soft_wrap=True)


def _ends(curve: Curve) -> str:
    return f"{curve.values[0]:.4g} -> {curve.values[-1]:.4g} in {console.count(len(curve.x), 'point')}"


def _has_braille() -> bool:
    try:
        "⣿│└─".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
