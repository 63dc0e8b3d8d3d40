"""What was measured, and what was measured before: CSV and JSON files.

`expected.csv` is the record that is committed: per case and target the category, and the reason where it is a refusal.
`peers.csv` holds the same cases through other importers and runtimes, measured elsewhere: `unsupported` there is our
`refused`, `harness` (their runner could not express the case) our `error`.
"""

from __future__ import annotations

import csv
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

from benchmarks.conformance.cases import CaseInfo
from benchmarks.conformance.verdicts import CATEGORIES, TARGETS, Category, Target, Verdict

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected.csv"
PEERS = HERE / "peers.csv"
PEER_COLUMNS = {
    "ort": "onnxruntime",
    "reference": "onnx.reference",
    "openvino": "OpenVINO",
    "onnx2torch": "onnx2torch",
    "onnx2torch_relabel": "onnx2torch, opset relabelled",
    "onnx2pytorch": "onnx2pytorch",
    "onnx2fx": "onnx2fx",
    "jaxort": "jaxonnxruntime",
    "jaxort_head": "jaxonnxruntime, head",
    "jaxort_head_relabel": "jaxonnxruntime, head, opset relabelled",
}

Expected = dict[str, dict[Target, Verdict]]
"""By case, then by target; times are not recorded."""


def read_expected(path: Path = EXPECTED) -> Expected:
    """Return the recorded verdicts; empty where nothing is recorded yet."""
    if not path.is_file():
        return {}
    recorded: Expected = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            recorded[row["case"]] = {
                target: Verdict(
                    case=row["case"],
                    target=target,
                    category=cast(Category, row[target]),
                    reason=row[f"{target}_reason"],
                )
                for target in TARGETS
                if row[target]
            }
    return recorded


def write_expected(recorded: Expected, path: Path = EXPECTED) -> None:
    """Write the record, sorted by case."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", *TARGETS, *(f"{target}_reason" for target in TARGETS)])
        for case in sorted(recorded):
            verdicts = [recorded[case].get(target) for target in TARGETS]
            categories = [verdict.category if verdict else "" for verdict in verdicts]
            writer.writerow([case, *categories, *(verdict.reason if verdict else "" for verdict in verdicts)])


def merge(recorded: Expected, verdicts: Iterable[Verdict]) -> Expected:
    """Return the record with the newly measured verdicts in place of the old ones."""
    merged = {case: dict(targets) for case, targets in recorded.items()}
    for verdict in verdicts:
        merged.setdefault(verdict.case, {})[verdict.target] = verdict
    return merged


def count_peers(names: Iterable[str]) -> dict[str, Counter[str]]:
    """Return what the peers did with these cases: by their name, counts by category."""
    wanted = set(names)
    counts: dict[str, Counter[str]] = {title: Counter() for title in PEER_COLUMNS.values()}
    translated = {"unsupported": "refused", "harness": "error"}
    with PEERS.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["case"] in wanted:
                for column, title in PEER_COLUMNS.items():
                    counts[title][translated.get(row[column], row[column])] += 1
    return counts


def count(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Return how many verdicts are of each category."""
    return Counter(verdict.category for verdict in verdicts)


def write_results(folder: Path, infos: Mapping[str, CaseInfo], verdicts: list[Verdict]) -> tuple[Path, Path]:
    """Write every verdict as CSV and the counts as JSON; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, summary = folder / "conformance.csv", folder / "conformance.json"
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "kind", "domains", "opset", "ops", "target", "category", "seconds", "reason"])
        for verdict in sorted(verdicts, key=lambda verdict: (verdict.case, verdict.target)):
            info = infos[verdict.case]
            facts = [info.name, info.kind, " ".join(info.domains), info.opset, " ".join(info.ops)]
            writer.writerow([*facts, verdict.target, verdict.category, verdict.seconds, verdict.reason])
    summary.write_text(json.dumps(_summary(infos, verdicts), indent=2) + "\n")
    return table, summary


def _summary(infos: Mapping[str, CaseInfo], verdicts: list[Verdict]) -> dict[str, object]:
    counts: dict[str, object] = {}
    for target in TARGETS:
        mine = [verdict for verdict in verdicts if verdict.target == target]
        standard = [verdict for verdict in mine if infos[verdict.case].is_standard]
        if mine:
            counts[target] = {
                "all": {category: count(mine)[category] for category in CATEGORIES},
                "ai.onnx only": {category: count(standard)[category] for category in CATEGORIES},
                "cpu seconds of one process": round(sum(verdict.seconds for verdict in mine), 1),
            }
    return {
        "at": datetime.now(UTC).isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("onnx", "onnx-ir", "torch", "jax", "numpy")},
        "counts": counts,
        "slowest": [asdict(verdict) for verdict in sorted(verdicts, key=lambda verdict: -verdict.seconds)[:10]],
    }
