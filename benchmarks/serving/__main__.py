"""`python -m benchmarks.serving [--quick] [--cases C ...] [--peers P ...]`: noa's server against all others.

One core for the server, the others for the load; every answer is checked. Installs the peers on first use, each into an
environment of its own below `.cache/`. Prints tables with each goal and whether it is met, writes JSON and plots.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.serving.bursts import say
from benchmarks.serving.report import Record, plot, show, write_json
from benchmarks.serving.roster import PEERS_BY_WEIGHT
from benchmarks.serving.run import CASES, QUICK_PEERS, Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = ", ".join(one.name for one in QUICK_PEERS)
    peers = tuple(dict.fromkeys(one.environment for one in PEERS_BY_WEIGHT))
    parser.add_argument("--quick", action="store_true", help=f"short bursts, a tenth of the memory run, {quick} only")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="which (default: all)")
    parser.add_argument("--peers", nargs="+", metavar="P", choices=peers, help=f"which: {', '.join(peers)}")
    parser.add_argument(
        "--requests", type=int, default=1_000_000, help="requests of the memory case (default: 1000000)"
    )
    parser.add_argument("--swaps", type=int, default=200, help="swaps of the memory case (default: 200)")
    parser.add_argument("--profile", action="store_true", help="print where noa's time goes in each case instead")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving"), help="a folder")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the servers, some of them frozen, would stay
    if arguments.profile:
        from benchmarks.serving.profiles import profile

        return profile(tuple(arguments.cases))
    plan = Plan(
        quick=arguments.quick,
        cases=tuple(arguments.cases),
        peers=tuple(arguments.peers) if arguments.peers else None,
        memory_requests=arguments.requests,
        memory_swaps=arguments.swaps,
    )
    started = time.monotonic()
    output: Path = arguments.output

    def keep(record: Record) -> None:
        write_json(record, output / "serving.json")

    record = run(plan, keep=keep)
    show(record)
    drawn = plot(record, output)
    say(f"done in {time.monotonic() - started:.0f} s; written to {output}/: serving.json, "
        + ", ".join(path.name for path in drawn if path.suffix == ".png"), keep=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
