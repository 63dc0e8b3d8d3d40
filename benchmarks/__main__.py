"""`python -m benchmarks [NAME ...] [--quick] [--profile] [--output FILE]`: run the benchmarks, print and write figures.

Each benchmark returns rows (case, figure, unit, and where there is a peer in the same run: the peer and the ratio).
Machines are shared and noisy: ratios within one run are to be quoted, medians of several bursts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.rows import Row

NAMES = ("registry", "training", "serving", "observing", "conversion", "demo")
PROFILED = ("registry",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="shorter bursts: to see that it runs, not to quote")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead of measuring it")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/latest.json"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark `{unknown[0]}`; there are {', '.join(NAMES)}")
    if arguments.profile:
        return show_profiles(arguments.names or PROFILED, parser)
    rows: list[Row] = []
    for name in arguments.names or NAMES:
        started = time.monotonic()
        print(f"bench: {name}", file=sys.stderr, flush=True)
        module = importlib.import_module(f"benchmarks.bench_{name}")
        rows += module.run(quick=arguments.quick)
        write(rows, arguments.output, quick=arguments.quick)  # what was measured is kept, whatever comes next
        print(f"bench: {name} done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    show(rows)
    print(f"bench: written to {arguments.output}", file=sys.stderr)
    return 0


def show_profiles(names: Sequence[str], parser: argparse.ArgumentParser) -> int:
    for name in names:
        if name not in PROFILED:
            parser.error(f"no profile of `{name}`; there is one of {', '.join(PROFILED)}")
        importlib.import_module(f"benchmarks.bench_{name}").profile()
    return 0


def show(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, justify in (("what", "left"), ("figure", "right"), ("unit", "left"), ("peer", "left"),
                            ("peer's figure", "right"), ("ratio", "right")):  # fmt: skip
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row.what, number(row.figure), row.unit, row.peer or "", number(row.peer_figure), number(row.ratio)
        )
    Console(width=170).print(table)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(rows: list[Row], path: Path, *, quick: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "at": datetime.now(UTC).isoformat(),
        "quick": quick,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
