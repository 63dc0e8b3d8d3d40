"""`noa predict --stream`: a line for each step as it comes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from noa_cli import _console as console

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from noa_serving import Step, StepStream


def print_steps(stream: StepStream, plain: Callable[[np.ndarray], object], *, as_json: bool) -> None:
    """Print the steps of a stream and why it ended; lines of JSON under `--json` and where nobody looks at a terminal.

    `plain` makes JSON values of an array.

    Raises:
        NoaError: as the stream does.
    """
    is_json = as_json or not sys.stdout.isatty()
    with stream:
        for step in stream:
            _print_step(step, plain, is_json=is_json)
    end = stream.end
    assert end is not None  # a stream without an end has raised
    if is_json:
        table = {"reason": end.reason, "steps": end.steps, "model": end.model}
        console.print_json_line({"end": {**table, "version": end.version, "digest": end.digest}})
        return
    digest = console.short_digest(end.digest)
    console.print_line(f"ended by {end.reason} after {console.count(end.steps, 'step')}", "dim")
    console.print_line(f"computed by {end.model}/{end.version} ({digest})", "dim")


def _print_step(step: Step, plain: Callable[[np.ndarray], object], *, is_json: bool) -> None:
    outputs = {name: plain(array) for name, array in step.outputs.items()}
    if is_json:
        console.print_json_line({"step": step.number, "outputs": outputs})
    else:
        shown = "  ".join(f"{name}: {json.dumps(values)}" for name, values in outputs.items())
        console.print_line(f"{step.number}  {shown}")
        sys.stdout.flush()
