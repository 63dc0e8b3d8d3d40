"""Tables on the terminal: counts beside the peers', what changed against the record, reasons of failures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.conformance.cases import CaseInfo
from benchmarks.conformance.records import Expected, count, count_peers
from benchmarks.conformance.verdicts import CATEGORIES, TARGETS, Verdict

_WIDE = Console(width=170, highlight=False)


def show_counts(infos: Mapping[str, CaseInfo], verdicts: Sequence[Verdict]) -> None:
    """Print how many of the cases passed here and through the peers, for those of ai.onnx alone and for all."""
    ran = {verdict.case for verdict in verdicts}
    standard = [name for name in ran if infos[name].is_standard]
    for title, names in (
        ("ai.onnx only", standard),
        ("all domains", list(ran)),
    ):
        if title != "ai.onnx only" and len(names) == len(standard):
            break
        table = Table(title=f"{title}: {len(names)} cases", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        for column in ("through", *CATEGORIES, "share"):
            table.add_column(column, justify="left" if column == "through" else "right")
        wanted = set(names)
        rows: dict[str, Counter[str]] = {}
        for target in TARGETS:
            mine = [verdict for verdict in verdicts if verdict.target == target and verdict.case in wanted]
            if mine:
                rows[f"noa, {target}"] = count(mine)
        for name, counts in {**rows, **count_peers(wanted)}.items():
            share = f"{100 * counts['pass'] / max(1, counts.total()):.0f} %"
            table.add_row(name, *(str(counts[category]) for category in CATEGORIES), share)
        _WIDE.print(table)


def show_kinds(infos: Mapping[str, CaseInfo], verdicts: Sequence[Verdict]) -> None:
    """Print the counts by kind of case."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("target", "kind", *CATEGORIES):
        table.add_column(column, justify="left" if column in ("target", "kind") else "right")
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.target, infos[verdict.case].kind].append(verdict)
    for (target, kind), group in sorted(groups.items()):
        table.add_row(target, kind, *(str(count(group)[category]) for category in CATEGORIES))
    _WIDE.print(table)


def show_failures(infos: Mapping[str, CaseInfo], verdicts: Sequence[Verdict]) -> None:
    """Print the reason of each case that did not pass, the wrong ones first."""
    order = {category: at for at, category in enumerate(("wrong", "error", "refused"))}
    failed = [verdict for verdict in verdicts if verdict.category != "pass"]
    for verdict in sorted(failed, key=lambda verdict: (verdict.target, order[verdict.category], verdict.case)):
        ops = " ".join(infos[verdict.case].ops[:4])
        print(f"{verdict.target:5} {verdict.category:7} {verdict.case} [{ops}]: {verdict.reason}")


def show_changes(recorded: Expected, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Print what differs from the record; returns what passed or was refused there and now fails."""
    order = {"pass": 0, "refused": 1, "error": 2, "wrong": 3}
    worse: list[Verdict] = []
    better = 0
    for verdict in verdicts:
        before = recorded.get(verdict.case, {}).get(verdict.target)
        if before is None or before.category == verdict.category:
            continue
        if order[verdict.category] < order[before.category]:
            better += 1
        else:
            worse.append(verdict)
            print(
                f"worse: {verdict.target} {verdict.case} was {before.category}, is {verdict.category}: {verdict.reason}"
            )
    known = sum(verdict.target in recorded.get(verdict.case, {}) for verdict in verdicts)
    print(f"conformance: against the record of {known} of them: {len(worse)} worse, {better} better")
    return worse
