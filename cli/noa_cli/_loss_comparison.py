"""`noa train --compare`: the losses of two backends side by side, as a table of sparklines and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import InvalidInputError
from noa_cli import _console as console

if TYPE_CHECKING:
    from noa_flows import PipelineResult
    from noa_training.loss_curves import CurveComparison

_PICTURE = "loss-curves.png"
_SPARK_WIDTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LossComparison:
    """What was compared, and where its picture is."""

    curves: CurveComparison
    picture: Path

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {**self.curves.to_dict(), "plot": str(self.picture)}


def check_comparison(*, compare: bool, plot: Path | None, backends: Sequence[str]) -> None:
    """Refuse what cannot be compared or drawn before anything is trained.

    Raises:
        InvalidInputError: there are not two backends, the picture has another ending, or nothing is to be compared.
        DependencyMissingError: matplotlib is not installed.
    """
    if not compare:
        if plot is not None:
            raise InvalidInputError("`--plot` draws what `--compare` compares", remedy="Add `--compare`")
        return
    if len(set(backends)) != 2:
        raise InvalidInputError(
            "`--compare` needs two backends",
            expected="--backend torch,jax",
            received=", ".join(backends),
            remedy="Add `--backend torch,jax`",
        )
    from noa_training.loss_curve_plot import check_plot

    check_plot(plot or Path(_PICTURE))


def compare_losses(result: PipelineResult, plot: Path | None) -> LossComparison:
    """Read the curves of a pipeline's jobs and draw them; without `plot` into the folder of the first job.

    Raises:
        NotFoundError: a job has left no events.
        StorageError: the disk refused the picture.
    """
    from noa_training.loss_curve_plot import save_plot
    from noa_training.loss_curves import compare_curves, read_loss_curve

    jobs = [(candidate.backend, candidate.job) for candidate in result.candidates]
    curves = compare_curves([read_loss_curve(job.folder, name=backend) for backend, job in jobs])
    picture = plot or jobs[0][1].folder / _PICTURE
    save_plot(curves, picture, title=f"{result.model}: {' and '.join(backend for backend, _ in jobs)}")
    return LossComparison(curves=curves, picture=picture)


def show_comparison(found: LossComparison) -> None:
    """Print the curves as sparklines on one scale, and how far they are apart."""
    from noa_training.loss_curves import EARLY_STEPS, sparkline

    curves = found.curves.curves
    losses = [loss for curve in curves for loss in curve.losses]
    console.print_table(
        ["backend", "training loss", "first", "last", "least", "points"],
        [
            [
                curve.name,
                sparkline(curve.losses, width=_SPARK_WIDTH, lowest=min(losses), highest=max(losses)),
                f"{curve.losses[0]:.6g}",
                f"{curve.losses[-1]:.6g}",
                f"{min(curve.losses):.6g}",
                len(curve.steps),
            ]
            for curve in curves
        ],
        title="Training loss",
    )
    step, value = found.curves.largest
    early = found.curves.early
    start = f"{early:.2g} in the first {EARLY_STEPS} steps, " if early is not None else ""
    console.print_line(f"relative difference: {start}{value:.2g} at step {step}, where they are furthest apart")
    console.print_line(f"the picture is in {found.picture}")
