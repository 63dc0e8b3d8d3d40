"""`python -m benchmarks.conformance`: the backend test suite of `onnx` through our importers. Examples: the package."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import benchmarks.conformance as package
from benchmarks.conformance import report
from benchmarks.conformance.cases import Suite, load_suite
from benchmarks.conformance.pool import Limits, run_all
from benchmarks.conformance.records import EXPECTED, merge, read_expected, write_expected, write_results
from benchmarks.conformance.verdicts import TARGETS, Target, Verdict, judge, run_case

RESULTS = Path("benchmarks/results")


def main() -> int:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, help="one of the importers (default: both)")
    parser.add_argument("--only", metavar="REGEX", help="cases whose name matches somewhere")
    parser.add_argument("--op", metavar="OP", help="cases that contain this operator")
    parser.add_argument("--kind", metavar="KIND", help="cases of this kind: node, simple, pytorch-converted, ...")
    parser.add_argument("--case", metavar="NAME", help="one case in this process; what it raises is shown in full")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--cpu-s", type=float, default=Limits().cpu_s, help="CPU seconds that one case may take")
    parser.add_argument("--memory-mib", type=int, default=Limits().memory_bytes >> 20, help="memory of one process")
    parser.add_argument("--failures", action="store_true", help="print the reason of each case that did not pass")
    parser.add_argument("--record", action="store_true", help=f"keep the verdicts in {EXPECTED.name}")
    parser.add_argument(
        "--write-docs", action="store_true", help="write the support page from the record; runs nothing"
    )
    arguments = parser.parse_args()
    if arguments.write_docs:
        from benchmarks.conformance.support_page import write_page

        print(f"conformance: written to {write_page()}")
        return 0
    suite = load_suite()
    targets: Sequence[Target] = (arguments.target,) if arguments.target else TARGETS
    if arguments.case:
        return run_one(suite, arguments.case, targets)
    names = select(suite, only=arguments.only, op=arguments.op, kind=arguments.kind)
    if not names:
        parser.error("no case matches")
    limits = Limits(cpu_s=arguments.cpu_s, memory_bytes=arguments.memory_mib << 20)
    verdicts = run_many(names, targets, jobs=arguments.jobs, limits=limits)
    return conclude(suite, verdicts, failures=arguments.failures, record=arguments.record)


def select(suite: Suite, *, only: str | None, op: str | None, kind: str | None) -> list[str]:
    return [
        info.name
        for info in suite.infos.values()
        if (only is None or re.search(only, info.name))
        and (op is None or op in info.ops)
        and (kind is None or kind == info.kind)
    ]


def run_one(suite: Suite, name: str, targets: Sequence[Target]) -> int:
    case = suite.read(name if name in suite.infos else f"test_{name}")
    print(f"{name}: opset {case.info.opset}, {' '.join(case.info.ops)}, rtol {case.info.rtol}, atol {case.info.atol}")
    if len(targets) == 1:
        problem = run_case(case, targets[0])
        print(f"{targets[0]}: {problem or 'pass'}")
        return 1 if problem else 0
    verdicts = [judge(case, target) for target in targets]
    for verdict in verdicts:
        print(f"{verdict.target}: {verdict.category} {verdict.reason}")
    return 0 if all(verdict.category == "pass" for verdict in verdicts) else 1


def run_many(names: Sequence[str], targets: Sequence[Target], *, jobs: int, limits: Limits) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for target in targets:
        started = said = time.monotonic()
        for done, verdict in enumerate(run_all(names, target, jobs=jobs, limits=limits), 1):
            verdicts.append(verdict)
            if time.monotonic() - said > 15:
                said = time.monotonic()
                print(f"conformance: {target} {done} of {len(names)} cases", file=sys.stderr, flush=True)
        print(f"conformance: {target} done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return verdicts


def conclude(suite: Suite, verdicts: list[Verdict], *, failures: bool, record: bool) -> int:
    table, summary = write_results(RESULTS, suite.infos, verdicts)
    recorded = read_expected()
    if failures:
        report.show_failures(suite.infos, verdicts)
    report.show_kinds(suite.infos, verdicts)
    report.show_counts(suite.infos, verdicts)
    worse = report.show_changes(recorded, verdicts)
    if record:
        write_expected(merge(recorded, verdicts))
        print(f"conformance: recorded in {EXPECTED.name}")
    print(f"conformance: written to {table} and {summary}")
    return 1 if worse and not record else 0


if __name__ == "__main__":
    sys.exit(main())
