"""Serving in short: requests per second and latency of noa's server against a bare FastAPI application.

The whole comparison, with every other server and the goals, is `make bench-serving` (`benchmarks/serving`); this is its
harness with the one peer that needs no installation. Both run one worker on a core of its own; short bursts of all
cases are interleaved in random order, every answer is checked, medians are quoted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.serving.bursts import Figure, http_subject, measure
from benchmarks.serving.noa_server import make_project, start_noa
from benchmarks.serving.roster import FASTAPI, NOA, noa_ways, start_peer
from benchmarks.serving.run import bench, model_of

CONNECTIONS = (1, 16, 64)


def run(*, quick: bool) -> list[Row]:
    """Measure the perceptron in both encodings."""
    seconds, rounds = (0.5, 3) if quick else (1.0, 7)
    with bench() as place:
        model = model_of(place, "mlp")
        ours = start_noa(make_project(place.folder, [model]), model, place.folder, cores=place.server_cores)
        try:
            bare = start_peer(
                FASTAPI, model, place.folder / "bare", cores=place.server_cores, python=Path(sys.executable)
            )
            try:
                subjects = [
                    http_subject(place, server, model, way, connections)
                    for server, ways in ((ours, noa_ways(model)), (bare, FASTAPI.ways(model)))
                    for way in ways
                    for connections in CONNECTIONS
                ]
                ours.freeze()
                bare.freeze()
                figures = measure(subjects, seconds=seconds, rounds=rounds)
            finally:
                bare.stop()
        finally:
            ours.stop()
    faults = [f"{one.peer}, {one.way}: {one.fault}" for one in figures if one.fault]
    if faults:
        raise RuntimeError("; ".join(faults))
    return [row for one in figures if one.peer == NOA for row in _rows(one, figures)]


def _rows(ours: Figure, figures: Sequence[Figure]) -> Iterator[Row]:
    peer = next(
        one
        for one in figures
        if (one.peer, one.encoding, one.connections) == (FASTAPI.name, ours.encoding, ours.connections)
    )
    for figure, unit, scale in (
        ("rate", "requests/s", 1.0),
        ("rate_per_cpu", "requests/CPU s", 1.0),
        ("p50_s", "ms p50", 1e3),
        ("p99_s", "ms p99", 1e3),
    ):
        yield Row(
            what=f"serve MLP, {ours.way}, {ours.connections} connections",
            figure=getattr(ours, figure) * scale,
            unit=unit,
            peer=FASTAPI.name,
            peer_figure=getattr(peer, figure) * scale,
        )
