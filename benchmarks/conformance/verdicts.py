"""One case through one target: import, run, compare, and say what came out."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, get_args

import numpy as np

from benchmarks.conformance.cases import Case, Value
from benchmarks.conformance.comparison import find_difference
from noa.errors import ConversionError
from noa_conversion.onnx_graph.demand import demanded_inputs
from noa_conversion.onnx_graph.model import OnnxValue
from noa_conversion.onnx_graph.reading import read_model

Target: TypeAlias = Literal["torch", "jax"]
Category: TypeAlias = Literal["pass", "wrong", "refused", "error"]
TARGETS: tuple[Target, ...] = get_args(Target)
CATEGORIES: tuple[Category, ...] = get_args(Category)

_LONGEST_REASON = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a case. `reason` says why it did not pass; for a refusal it is the refusal's own text."""

    case: str
    target: Target
    category: Category
    reason: str = ""
    seconds: float = 0.0


class Runner(Protocol):
    """A target's module: imports a model and runs it once."""

    def run(
        self,
        model: bytes,
        bind: Mapping[str, np.ndarray],
        inputs: Sequence[Value],
        outputs: Sequence[OnnxValue],
    ) -> list[Value]:
        """Return the outputs as numpy arrays, lists of them and None; `outputs` says what the file declares."""
        ...


def judge(case: Case, target: Target) -> Verdict:
    """Run a case; nothing that it raises escapes."""
    started = time.perf_counter()
    try:
        problem = run_case(case, target)
        category, reason = ("wrong", problem) if problem else ("pass", "")
    except ConversionError as error:
        category, reason = "refused", str(error)
    except Exception as error:  # noqa: BLE001  # whatever an importer raises is a verdict
        category, reason = "error", f"{type(error).__name__}: {error}"
    return Verdict(
        case=case.info.name,
        target=target,
        category=cast(Category, category),
        reason=" ".join(reason.split())[:_LONGEST_REASON],
        seconds=round(time.perf_counter() - started, 3),
    )


def run_case(case: Case, target: Target) -> str | None:
    """Return how the outputs differ from the suite's, or None where they are equal; what is raised comes through."""
    runner = cast(Runner, importlib.import_module(f"benchmarks.conformance.{target}_runner"))
    read = read_model(case.model)
    demanded = demanded_inputs(read)
    for inputs, expected in case.data:
        named = dict(zip((value.name for value in read.graph.inputs), inputs, strict=True))
        bind = {name: value for name, value in named.items() if name in demanded}
        runtime = [value for name, value in named.items() if name not in demanded]
        actual = runner.run(case.model, bind, runtime, read.graph.outputs)
        problem = find_difference(expected, actual, rtol=case.info.rtol, atol=case.info.atol)
        if problem is not None:
            return problem
    return None
