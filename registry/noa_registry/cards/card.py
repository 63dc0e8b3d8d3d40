"""What a model card says, taken from a version's record and from nothing else.

What was not measured is said so: a card that leaves it out reads as if all were well.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from noa_registry.cards.document import Block, Bullets, Code, Document, Picture, Reliability, Section, Table, Text
from noa_registry.cards.markdown import to_markdown
from noa_registry.cards.page import to_html
from noa_registry.evidence import (
    CALIBRATION,
    EQUIVALENCE,
    GATE,
    LATENCY,
    METRICS,
    SCAN,
    CalibrationEvidence,
    Evidence,
    LatencyEvidence,
    MetricsEvidence,
    SliceMetrics,
    by_thing,
    worst_calibration,
    worst_judgement,
)
from noa_registry.gates import GateReport
from noa_registry.gates.counted_values import counted_value
from noa_registry.gates.recorded_latency import slowest
from noa_registry.gates.recorded_metrics import RecordedMetrics
from noa_registry.lineage.outline import OutlineItem, outline
from noa_registry.lineage.standing import standing
from noa_registry.lineage.svg import to_svg

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.ledger import LedgerEntry
    from noa_registry.lineage.graph import LineageGraph
    from noa_registry.signing import StoredSignature
    from noa_registry.versions import ModelVersion

SERVER: Final = "http://127.0.0.1:3000"
_MOST_SLICES: Final = 30
_MOST_MOVES: Final = 50
_RECORDED: Final = (  # tags that noa writes about the training, and what they are called in a card
    ("noa.recipe", "recipe"),
    ("noa.recipe_digest", "recipe file"),
    ("noa.overrides", "changes to the recipe"),
    ("noa.seed", "seed"),
    ("noa.threads", "threads"),
    ("noa.job_id", "job"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Everything a card is made of, read from one registry."""

    version: ModelVersion
    evidence: tuple[Evidence, ...]
    moves: tuple[LedgerEntry, ...]
    signatures: tuple[StoredSignature, ...]
    lineage: LineageGraph
    policy: GateSettings | None = None
    """The model's gate: it may say in which direction a metric is better."""
    server: str = SERVER
    """The URL of the server that the examples ask."""


@dataclass(frozen=True, slots=True)
class Card:
    """A model card. The same facts give the same text."""

    facts: CardFacts

    def to_document(self) -> Document:
        """Return the card's content without a form."""
        version = self.facts.version
        sections = (
            Section(title="What it is", blocks=tuple(_identity(version))),
            Section(title="What it takes and gives", blocks=(_signature(version),)),
            Section(title="How to use it", blocks=tuple(_usage(version, self.facts.server))),
            Section(title="Data", blocks=tuple(_data(self.facts))),
            Section(title="Training", blocks=tuple(_training(version))),
            Section(title="Evaluation", blocks=tuple(_evaluation(self.facts))),
            Section(title="Limits", blocks=(Bullets(tuple(limits(self.facts))),)),
            Section(title="Formats", blocks=tuple(_formats(self.facts))),
            Section(title="Gates", blocks=tuple(_gates(self.facts))),
            Section(title="History", blocks=tuple(_history(self.facts))),
            Section(title="Lineage", blocks=(_lineage(self.facts.lineage, version),)),
        )
        return Document(title=f"{version.name}, version {version.number}", subtitle=version.digest, sections=sections)

    def to_markdown(self) -> str:
        """Return the card as Markdown."""
        return to_markdown(self.to_document())

    def to_html(self) -> str:
        """Return the card as one HTML file that fetches nothing."""
        return to_html(self.to_document())


def limits(facts: CardFacts) -> list[str]:
    """Return what is not known about a version, one sentence each; it is never empty."""
    kinds = {fact.kind for fact in facts.evidence}
    served = facts.version.default_format
    measured = [fact for fact in facts.evidence if fact.kind == METRICS]
    is_grouped = any(fact.values.get("slices") for fact in measured)
    splits = ", ".join(sorted({str(fact.values.get("split")) for fact in measured}))
    unproven = [name for name in facts.version.formats if not _shown_equal(facts, name)]
    said = {
        "No metric was measured.": not measured,
        "Metrics were measured on all rows together only, not on any group of them.": measured and not is_grouped,
        f"Metrics were measured on the split {splits} only; other data may differ.": bool(splits),
        "Calibration was not measured: do not read outputs as probabilities.": CALIBRATION not in kinds,
        "Latency was not measured.": LATENCY not in kinds,
        **{f"The format {name} was not shown to compute what the native one computes.": True for name in unproven},
        f"The format that is served, {served}, was not measured itself.": not any(
            f.subject == served for f in measured
        ),
        "Its files were not scanned; the formats that noa writes run no code when they are loaded.": SCAN not in kinds,
        "It is not signed.": not facts.signatures,
        "Nobody has trained it a second time: that it can be reproduced is not shown.": "reproduction" not in kinds,
        **_source_limits(facts.version),
    }
    always = "Robustness, fairness beyond the groups shown, and inputs unlike the data were not measured."
    return [*(sentence for sentence, holds in said.items() if holds), always]


def _source_limits(version: ModelVersion) -> dict[str, bool]:
    commit = version.git_commit
    is_dirty = version.tags.get("noa.git.dirty") == "true" or (commit or "").endswith("-dirty")
    return {
        "The source code it was trained from is not recorded.": commit is None,
        "It was trained from files that no commit holds.": commit is not None and is_dirty,
    }


def _identity(version: ModelVersion) -> list[Block]:
    facts = (
        ("model", version.name),
        ("version", version.number),
        ("digest", version.digest),
        ("aliases", ", ".join(version.aliases) or None),
        ("native format", version.native),
        ("all formats", ", ".join(version.formats)),
        ("registered", f"{version.created_at:%Y-%m-%d %H:%M} UTC by {version.created_by}"),
    )
    tags = tuple((key, value) for key, value in version.tags.items() if not key.startswith("noa."))
    about: list[Block] = [Text(version.description)] if version.description else []
    return [*about, Table((), facts), *([Table((), tags, "Tags")] if tags else [])]


def _signature(version: ModelVersion) -> Block:
    rows = [("input", spec.name, spec.describe()) for spec in version.signature.inputs]
    rows += [("output", spec.name, spec.describe()) for spec in version.signature.outputs]
    return Table(("", "name", "tensor"), tuple(rows))


def _usage(version: ModelVersion, server: str) -> list[Block]:
    reference, inputs = version.reference, version.signature.inputs
    numpy = "import ml_dtypes\n" * any(spec.dtype == "bfloat16" for spec in inputs) + "import numpy as np\n"
    arguments = ", ".join(f"{json.dumps(spec.name)}: {_zeros(spec.dtype, spec.shape)}" for spec in inputs)
    python = (
        f"from pathlib import Path\n\n{numpy}from noa.settings import load_settings\n"
        "from noa_registry import Registry\n\n"
        'with Registry.open(load_settings(Path(".")).settings) as registry:\n'
        f"    model = registry.load({json.dumps(reference)})\n"
        f"outputs = model.run({{{arguments}}})\n"
    )
    given = _zeros(inputs[0].dtype, inputs[0].shape) if len(inputs) == 1 else f"{{{arguments}}}"
    mlflow = (
        f"from pathlib import Path\n\nimport mlflow\n{numpy}from noa.settings import load_settings\n\n"
        'mlflow.set_tracking_uri(load_settings(Path(".")).settings.registry.database_url)\n'
        f"model = mlflow.pyfunc.load_model({json.dumps('models:/' + reference)})\n"
        f"outputs = model.predict({given})\n"
    )
    served = shlex.quote(f"{version.name}@{version.aliases[0]}" if version.aliases else reference)
    example = (
        "from pathlib import Path\n\nfrom noa.settings import load_settings\nfrom noa_registry import Registry\n\n"
        'with Registry.open(load_settings(Path(".")).settings) as registry:\n'
        f"    folder = registry.open_wrapper(registry.resolve({json.dumps(reference)}))\n"
        '    Path("input.json").write_text((folder / "serving_input_example.json").read_text())\n'
    )
    http = f"noa serve {served}\ncurl -s {server}/predict -H 'content-type: application/json' -d @input.json\n"
    return [
        Code("python", python),
        Text("With stock MLflow, which needs noa only to look up the registry's address if the format onnx is there:"),
        Code("python", mlflow),
        Text("Over HTTP (also as the Open Inference Protocol, under /v2):"),
        Code("bash", http),
        Text("The file input.json is a request; this writes the one of real inputs that was sealed with the version:"),
        Code("python", example),
    ]


def _zeros(dtype: str, shape: Sequence[str | int]) -> str:
    sizes = ", ".join("1" if isinstance(axis, str) else str(axis) for axis in shape)
    numpy_name = "object" if dtype == "string" else json.dumps(dtype)
    make, fill = ("full", ', ""') if dtype == "string" else ("zeros", "")
    numpy_name = "ml_dtypes.bfloat16" if dtype == "bfloat16" else numpy_name
    return f"np.{make}(({sizes}{',' if len(shape) == 1 else ''}){fill}, dtype={numpy_name})"


def _data(facts: CardFacts) -> list[Block]:
    version = facts.version
    rows: list[tuple[object, ...]] = [("dataset, all splits", version.dataset_digest)]
    rows += [
        (key.removeprefix("noa.data."), value) for key, value in version.tags.items() if key.startswith("noa.data.")
    ]
    text = "The digests name the values of the rows. The rows themselves are not in the registry."
    return [Table((), tuple(rows)), Text(text, "muted")]


def _training(version: ModelVersion) -> list[Block]:
    recorded = {key: version.tags[key] for key, _ in _RECORDED if key in version.tags}
    rows: list[tuple[object, ...]] = [
        (label, "none" if recorded[key] == "{}" else recorded[key]) for key, label in _RECORDED if key in recorded
    ]
    rows += [("git commit", version.git_commit), ("run", version.run_id)]
    params = tuple((key, _plain(value)) for key, value in version.params.items())
    environment = tuple(version.environment.items())
    return [
        Table((), tuple(rows)),
        *([Table(("parameter", "value"), params)] if params else [Text("No parameters are recorded.", "muted")]),
        *(
            [Table(("package", "version"), environment)]
            if environment
            else [Text("No environment is recorded.", "muted")]
        ),
    ]


def _evaluation(facts: CardFacts) -> list[Block]:
    found = [_counted(facts, group) for group in by_thing(facts.evidence, METRICS)]
    measured = [entry for entry, _ in found]
    blocks: list[Block] = []
    if measured:
        names = tuple(dict.fromkeys(name for entry in measured for name in entry.metrics))
        rows = tuple(
            (
                entry.subject,
                entry.split,
                entry.rows,
                *(_number(entry.metrics.get(name)) for name in names),
                entry.dataset_digest,
            )
            for entry in measured
        )
        blocks.append(Table(("format", "split", "rows", *names, "rows' digest"), rows))
    else:
        blocks.append(Text("No metric was measured.", "bad"))
    blocks += [Text(remark) for _, remarks in found for remark in remarks]
    blocks += [_slices(entry) for entry in measured if entry.slices and entry.subject == facts.version.default_format]
    for group in by_thing(facts.evidence, CALIBRATION):
        worst = worst_calibration([CalibrationEvidence.from_evidence(fact) for fact in group])
        blocks += _calibration(worst, len(group))
    for group in by_thing(facts.evidence, LATENCY):
        blocks.append(_latency(slowest([LatencyEvidence.from_evidence(fact) for fact in group]), len(group)))
    equal = tuple(_equivalence(worst_judgement(group)) for group in by_thing(facts.evidence, EQUIVALENCE))
    if equal:
        headings = ("format", "compared with", "verdict", "largest difference", "samples")
        blocks.append(Table(headings, equal, "Whether converted formats compute the same"))
    again = [fact for fact in facts.evidence if fact.kind == "reproduction"]
    if again:
        newest = again[-1]
        tone = "good" if newest.passed else "bad"
        when = f"{newest.created_at:%Y-%m-%d}"
        blocks.append(
            Text(f"Trained again on {when} from {newest.values.get('source')}: {newest.values.get('verdict')}.", tone)
        )
    return blocks


def _slices(entry: MetricsEvidence) -> Block:
    names = tuple(dict.fromkeys(name for part in entry.slices.values() for name in part.metrics))
    parts = sorted(entry.slices.items(), key=lambda item: item[0])
    rows = tuple(
        (name, part.rows, *(_number(part.metrics.get(metric)) for metric in names))
        for name, part in parts[:_MOST_SLICES]
    )
    more = len(parts) - _MOST_SLICES
    caption = f"Groups of the {entry.split} rows ({entry.subject})" + (f", and {more} more" if more > 0 else "")
    return Table(("group", "rows", *names), rows, caption)


def _calibration(entry: CalibrationEvidence, count: int) -> list[Block]:
    caption = (
        f"Calibration of {entry.subject} on {entry.rows} rows of {entry.split}: expected calibration error "
        f"{entry.ece:.4f}, Brier score {entry.brier:.4f} ({entry.binning})" + _of_several("worst", count)
    )
    return [Reliability(tuple((b.confidence, b.accuracy, b.rows) for b in entry.bins), caption)]


def _latency(entry: LatencyEvidence, count: int) -> Block:
    rows = tuple((b.batch, f"{b.p50_ms:.3g} ms", f"{b.p99_ms:.3g} ms", b.runs) for b in entry.batches)
    caption = f"Latency of {entry.subject} on {entry.hardware.describe()} (load {entry.hardware.load:.1f})"
    caption += _of_several("slowest", count)
    return Table(("batch", "p50", "p99", "runs"), rows, caption)


def _of_several(which: str, count: int) -> str:
    return f", the {which} of {count} measurements" if count > 1 else ""


def _equivalence(fact: Evidence) -> tuple[object, ...]:
    values = fact.values
    largest = next((values[key] for key in ("max_abs_error", "max_difference") if key in values), None)
    return (
        fact.subject,
        values.get("source"),
        "passed" if fact.passed else "failed",
        _number(largest),
        values.get("samples"),
    )


def _formats(facts: CardFacts) -> list[Block]:
    version = facts.version
    rows = tuple(
        (
            f"{name} (native)" if name == version.native else name,
            sealed.manifest.size_bytes,
            len(sealed.manifest.files),
            sealed.digest,
        )
        for name, sealed in version.formats.items()
    )
    signed = tuple(
        (entry.subject, entry.identity, f"{entry.created_at:%Y-%m-%d %H:%M} UTC", entry.digest)
        for entry in facts.signatures
    )
    blocks: list[Block] = [Table(("format", "bytes", "files", "digest"), rows)]
    if signed:
        blocks.append(Table(("signed", "by", "when", "digest"), signed, "Signatures, as stored; loading verifies them"))
    return blocks


def _gates(facts: CardFacts) -> list[Block]:
    """Return the newest verdict per alias: of a check, or of the promotion that the ledger holds."""
    newest: dict[str, tuple[datetime, Mapping[str, object]]] = {}
    judged = [(fact.created_at, fact.values) for fact in facts.evidence if fact.kind == GATE]
    moves = [move for move in facts.moves if move.to_number == facts.version.number and move.verdict]
    for moment, values in sorted([*judged, *((m.created_at, m.verdict) for m in moves)], key=lambda pair: pair[0]):
        newest[str(values.get("alias"))] = (moment, values)
    blocks = [_verdict(alias, moment, values) for alias, (moment, values) in sorted(newest.items())]
    return blocks or [Text("No gate has judged it yet.", "muted")]


def _verdict(alias: str, moment: datetime, values: Mapping[str, object]) -> Block:
    report = GateReport.from_dict(values)
    rows = tuple((v.rule, v.state, v.expected, v.received) for v in report.verdicts)
    caption = f"Gate of @{alias}, {moment:%Y-%m-%d %H:%M} UTC: {'passed' if report.passed else 'refused'}"
    return Table(("rule", "verdict", "expected", "received"), rows, caption)


def _history(facts: CardFacts) -> list[Block]:
    number = facts.version.number
    rows = tuple(
        (
            entry.sequence,
            f"{entry.created_at:%Y-%m-%d %H:%M} UTC",
            entry.alias,
            entry.action,
            "came" if entry.to_number == number else f"left for {entry.to_number}",
            entry.actor,
            entry.reason or None,
        )
        for entry in facts.moves[-_MOST_MOVES:]
    )
    blocks: list[Block] = []
    if rows:
        headings = ("ledger row", "when", "alias", "action", "this version", "by", "why")
        blocks.append(Table(headings, rows))
    else:
        blocks.append(Text("No alias has ever pointed to it.", "muted"))
    return [*blocks, *(_origin(fact) for fact in facts.evidence if fact.kind == "origin")]


def _origin(fact: Evidence) -> Block:
    values = fact.values
    return Text(
        f"Imported by {values.get('imported_by')} on {fact.created_at:%Y-%m-%d} from {values.get('reference')} of the "
        f"registry {values.get('registry')}, where {values.get('created_by')} registered it."
    )


def _lineage(graph: LineageGraph, version: ModelVersion) -> Block:
    lines: list[str] = []
    for item in outline(graph):
        _write(item, 0, lines)
    return Picture(to_svg(graph, title=f"Lineage of {version.reference}"), "\n".join(lines))


def _write(item: OutlineItem, depth: int, lines: list[str]) -> None:
    parts = [item.verb]
    if item.node is not None:
        parts += [f"{item.node.kind} {item.node.label}", f"({became})" if (became := standing(item.node)) else ""]
    said = " ".join(filter(None, parts))
    lines.append("  " * depth + " ".join(said.split()))
    for child in item.children:
        _write(child, depth + 1, lines)


def _counted(facts: CardFacts, group: Sequence[Evidence]) -> tuple[MetricsEvidence, list[str]]:
    """Return several measurements as one, by the values that the gate judges, and remarks where they differ."""
    recorded = RecordedMetrics.read(facts.version.reference, group)
    newest = MetricsEvidence.from_evidence(group[-1])
    remarks: list[str] = []

    def counted(name: str | None) -> dict[str, float]:
        values: dict[str, float] = {}
        for metric in recorded.names(name):
            chosen = counted_value(recorded, metric, name, policy=facts.policy)
            if chosen is None:
                continue
            values[metric] = chosen.value
            if chosen.is_disputed:
                of = "" if name is None else f" of the group {name}"
                where = f"{newest.subject} on {newest.split}"
                remarks.append(f"{metric}{of} ({where}) is {chosen.value:.4g}{chosen.describe_others()}.")
        return values

    slices = {
        name: SliceMetrics(
            rows=next(m.slices[name].rows for _, m in recorded.facts if name in m.slices), metrics=counted(name)
        )
        for name in recorded.slices
    }
    return replace(newest, metrics=counted(None), slices=slices), remarks


def _shown_equal(facts: CardFacts, name: str) -> bool:
    if name == facts.version.native:
        return True
    source = facts.version.formats[facts.version.native].digest
    digest = facts.version.formats[name].digest
    about = [
        fact.passed
        for fact in facts.evidence
        if fact.kind == EQUIVALENCE and fact.digest == digest and fact.values.get("source_digest") == source
    ]
    return bool(about) and all(about)


def _number(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value


def _plain(value: object) -> str:
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, Mapping | list | tuple) else str(value)
    )
