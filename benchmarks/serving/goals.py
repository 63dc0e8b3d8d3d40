"""What serving shall reach, and whether a run reached it. Nothing is met that was not measured.

Rates are judged per second of the server's CPU time, which other users of the machine change least; the ratio by the
clock stands beside it. Latencies, goodput and recovery can only be told by the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.serving.bursts import Figure
from benchmarks.serving.roster import BENTOML, ECHO, FASTAPI, LIMIT, MLSERVER, NOA, PYTRITON, TRITON
from benchmarks.serving.stress import OVERLOAD_CONNECTIONS

if TYPE_CHECKING:
    from benchmarks.serving.stress import HalfLoad, Memory, Overload

MAX_REFUSAL_S, MAX_RECOVERY_S = 0.05, 1.0
MAX_PSS_BYTES, MAX_GROWTH = 120e6, 0.03
MAX_START_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table. `ratio` is compared with `bound`; `by_clock` is the same ratio by the clock, for rates."""

    case: str
    against: str
    unit: str
    ours: float | None
    theirs: float | None
    ratio: float | None
    by_clock: float | None = None
    bound: float
    at_least: bool = True

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached, None if it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


def best(figures: Iterable[Figure], peer: str, model: str, encoding: str, *, by: str = "rate_per_cpu") -> Figure | None:
    """Return the best figure of a peer without fault over its ways and connections."""
    mine = [one for one in figures if (one.peer, one.model, one.encoding) == (peer, model, encoding) and not one.fault]
    return max(mine, key=lambda one: getattr(one, by), default=None)


def judge(
    figures: Sequence[Figure],
    half: Sequence[HalfLoad],
    overloads: Sequence[Overload],
    memory: Memory | None,
    package_start_s: float | None = None,
    swaps: Memory | None = None,
) -> list[Goal]:
    """Return every goal with what the run found."""
    return [
        *_throughput(figures),
        *_single(figures),
        *_limits(figures),
        *_grpc(figures),
        *_half(half),
        *_overload(overloads),
        *_memory(memory),
        *_swaps(swaps),
        _package_start(package_start_s),
    ]


def rate_goal(
    case: str, figures: Sequence[Figure], *, peer: str, model: str, ours: str, theirs: str, bound: float
) -> Goal:
    """Compare noa's best rate in the encoding `ours` with a peer's best in `theirs`."""

    def pair(by: str) -> tuple[float, float] | None:
        mine = best(figures, NOA, model, ours, by=by)
        other = best(figures, peer, model, theirs, by=by)
        return None if mine is None or other is None else (getattr(mine, by), getattr(other, by))

    by_cpu, by_clock = pair("rate_per_cpu"), pair("rate")
    note = peer if ours == theirs or theirs == "none" else f"{peer} ({theirs})"
    return Goal(
        case=case,
        against=note,
        unit="rows/CPU s",
        ours=by_cpu[0] if by_cpu else None,
        theirs=by_cpu[1] if by_cpu else None,
        ratio=by_cpu[0] / by_cpu[1] if by_cpu else None,
        by_clock=by_clock[0] / by_clock[1] if by_clock else None,
        bound=bound,
    )


def _throughput(figures: Sequence[Figure]) -> Iterator[Goal]:
    for encoding in ("binary", "JSON"):
        for peer, bound in ((TRITON, 3.0), (BENTOML, 30.0), (FASTAPI, 4.0)):
            theirs = "JSON" if peer is BENTOML else encoding  # BentoML takes arrays as JSON only
            yield rate_goal(
                f"MLP, {encoding}, best of 1..64 connections",
                figures,
                peer=peer.name,
                model="mlp",
                ours=encoding,
                theirs=theirs,
                bound=bound,
            )


def _single(figures: Sequence[Figure]) -> Iterator[Goal]:
    for encoding in ("binary", "JSON"):
        found = [_p50(figures, peer, encoding) for peer in (NOA, TRITON.name)]
        ours, theirs = found
        yield Goal(
            case=f"MLP, {encoding}, one connection: p50",
            against=TRITON.name,
            unit="ms",
            ours=ours,
            theirs=theirs,
            ratio=None if ours is None or not theirs else ours / theirs,
            bound=0.8,
            at_least=False,
        )


def _p50(figures: Sequence[Figure], peer: str, encoding: str) -> float | None:
    times = [
        one.p50_s * 1e3
        for one in figures
        if (one.peer, one.model, one.encoding, one.connections) == (peer, "mlp", encoding, 1) and not one.fault
    ]
    return min(times, default=None)


def _limits(figures: Sequence[Figure]) -> Iterator[Goal]:
    single = [one for one in figures if one.peer != LIMIT or one.way == "batch 1"]
    yield rate_goal(
        "CNN, binary, of one row a call in process",
        single,
        peer=LIMIT,
        model="cnn",
        ours="binary",
        theirs="none",
        bound=0.93,
    )
    yield rate_goal(
        "MiniLM, 32 tokens, of the best batch in process",
        figures,
        peer=LIMIT,
        model="minilm",
        ours="binary",
        theirs="none",
        bound=0.98,
    )
    yield rate_goal(
        "256 KiB tensor, binary, of uvicorn echoing it",
        figures,
        peer=ECHO,
        model="tensor",
        ours="binary",
        theirs="binary",
        bound=0.9,
    )


def _grpc(figures: Sequence[Figure]) -> Iterator[Goal]:
    for peer, bound in ((PYTRITON, 1.5), (MLSERVER, 2.5)):
        yield rate_goal("MLP, gRPC", figures, peer=peer.name, model="mlp", ours="gRPC", theirs="gRPC", bound=bound)


def _half(found: Sequence[HalfLoad]) -> Iterator[Goal]:
    rows = {one.model: one for one in found if one.peer == NOA}
    for model in ("mlp", "cnn"):
        one = rows.get(model)
        allowed = 2 * one.p50_s + one.batch_s if one else None
        yield Goal(
            case=f"{model.upper()}, half of saturation: p99",
            against="2x its p50 + one batch",
            unit="ms",
            ours=one.p99_s * 1e3 if one else None,
            theirs=allowed * 1e3 if allowed else None,
            ratio=one.p99_s / allowed if one and allowed else None,
            bound=1.0,
            at_least=False,
        )


def _overload(found: Sequence[Overload]) -> Iterator[Goal]:
    rows = {
        one.model: one
        for one in found
        if one.peer == NOA and not one.is_patient and one.connections == OVERLOAD_CONNECTIONS
    }
    for model in ("mlp", "cnn"):
        one = rows.get(model)
        case = f"{model.upper()}, {OVERLOAD_CONNECTIONS} impatient connections"
        ours = None if one is None or one.fault else one
        yield Goal(
            case=f"{case}: goodput",
            against="saturation",
            unit="rows/s",
            ours=ours and ours.goodput,
            theirs=ours and ours.saturation,
            ratio=ours and ours.goodput / ours.saturation,
            bound=0.9,
        )
        yield Goal(
            case=f"{case}: slowest refusal",
            against="50 ms",
            unit="ms",
            ours=ours and ours.refusal_max_s * 1e3,
            theirs=MAX_REFUSAL_S * 1e3,
            ratio=ours and ours.refusal_max_s / MAX_REFUSAL_S,
            bound=1.0,
            at_least=False,
        )
        yield Goal(
            case=f"{case}: recovery",
            against="1 s",
            unit="s",
            ours=ours and ours.recovery_s,
            theirs=MAX_RECOVERY_S,
            ratio=ours and ours.recovery_s / MAX_RECOVERY_S,
            bound=1.0,
            at_least=False,
        )


def _memory(found: Memory | None) -> Iterator[Goal]:
    ours = None if found is None or found.fault else found
    size = f", {ours.requests:,} requests, {ours.swaps} swaps" if ours else ""
    yield Goal(
        case="memory of one worker (PSS), MLP" + size,
        against="120 MB",
        unit="MB",
        ours=ours and ours.highest_bytes / 1e6,
        theirs=MAX_PSS_BYTES / 1e6,
        ratio=ours and ours.highest_bytes / MAX_PSS_BYTES,
        bound=1.0,
        at_least=False,
    )
    yield Goal(
        case="its growth in the second half",
        against="3%",
        unit="%",
        ours=ours and ours.growth * 100,
        theirs=MAX_GROWTH * 100,
        ratio=ours and ours.growth / MAX_GROWTH,
        bound=1.0,
        at_least=False,
    )
    yield _while_it_swaps(ours)


def _swaps(found: Memory | None) -> Iterator[Goal]:
    """The version is swapped again and again while 16 connections have all of the server's core."""
    if found is None:
        return
    ours = None if found.fault else found
    yield _while_it_swaps(ours, f", {found.swaps} swaps under full load")
    yield Goal(
        case=f"requests that failed, of {found.requests:,}",
        against="none",
        unit="requests",
        ours=0.0 if ours else None,
        theirs=0.0,
        ratio=0.0 if ours else None,
        bound=0.0,
        at_least=False,
    )


def _while_it_swaps(ours: Memory | None, told: str = "") -> Goal:
    return Goal(
        case=f"p99 while it swaps{told}",
        against="before",
        unit="ms",
        ours=ours and ours.p99_swapping_s * 1e3,
        theirs=ours and ours.p99_before_s * 1e3,
        ratio=ours and ours.p99_swapping_s / max(ours.p99_before_s, 1e-9),
        bound=2.0,
        at_least=False,
    )


def _package_start(found_s: float | None) -> Goal:
    return Goal(
        case="MLP, packaged: from its start to the first right answer",
        against="2 s",
        unit="s",
        ours=found_s,
        theirs=MAX_START_S,
        ratio=None if found_s is None else found_s / MAX_START_S,
        bound=1.0,
        at_least=False,
    )
