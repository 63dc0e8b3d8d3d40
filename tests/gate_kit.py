"""Candidates with predictions for the tests of gates: no registry, only what a gate sees."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from noa.settings import GateSettings
from noa.signatures import Signature
from noa_registry import Evidence, GateReport, Predictions, RuleVerdict, equivalence_evidence, predictions_evidence
from noa_registry.evidence import MetricsEvidence, SliceMetrics
from noa_registry.gates import ApprovalFact, Candidate, GateInput, GateWork, evaluate
from noa_training.metrics import compute_metrics

NATIVE, ONNX, VERSION, ROWS = (f"sha256:{name}" for name in ("native", "onnx", "version", "rows"))
PASSED = equivalence_evidence(
    source="torch", source_digest=NATIVE, target="onnx", target_digest=ONNX, passed=True, values={}
)


def candidate(*evidence: Evidence, reference: str = "digits/2", signature: Signature | None = None) -> Candidate:
    return Candidate(
        reference=reference,
        native="torch",
        formats={"torch": NATIVE, "onnx": ONNX},
        evidence=(PASSED, *evidence),
        digest=VERSION,
        sizes={"torch": 10, "onnx": 1000},
        signature=signature,
    )


def logits_that_are_right(targets: np.ndarray, right: np.ndarray, classes: int = 3) -> np.ndarray:
    """Return logits whose largest is the target's where `right`, else the next class's."""
    chosen = np.where(right, targets, (targets + 1) % classes)
    return np.eye(classes, dtype=np.float32)[chosen]


def measured(
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    dataset: str = ROWS,
    slices: Mapping[str, np.ndarray] | None = None,
    metrics: Mapping[str, float] | None = None,
    max_rows: int = 50_000,
) -> list[Evidence]:
    """Return the metrics, with slices, and the predictions of a classifier, as the pipeline records them."""
    names = ("loss", "accuracy")
    masks = {f"class={label}": targets == label for label in np.unique(targets)} | dict(slices or {})
    facts = MetricsEvidence(
        subject="onnx",
        digest=ONNX,
        dataset_digest=dataset,
        split="test",
        metrics=metrics or compute_metrics(names, logits, targets, objective="cross_entropy"),
        rows=len(targets),
        slices={
            name: SliceMetrics(
                rows=int(mask.sum()),
                metrics=compute_metrics(names, logits[mask], targets[mask], objective="cross_entropy"),
            )
            for name, mask in masks.items()
        },
    )
    predictions = predictions_evidence(
        Predictions(outputs=logits, targets=targets, slices=slices or {}),
        subject="onnx",
        digest=ONNX,
        dataset_digest=dataset,
        split="test",
        objective="cross_entropy",
        output="logits",
        max_rows=max_rows,
    )
    assert predictions is not None
    return [facts.to_evidence(), predictions]


def judge(
    subject: Candidate,
    policy: GateSettings | None = None,
    holder: Candidate | None = None,
    *,
    approvals: tuple[ApprovalFact, ...] = (),
    actor: str = "",
) -> GateReport:
    sides = [subject] if holder is None else [subject, holder]
    kept = {
        attachment.digest: attachment.content
        for side in sides
        for fact in side.evidence
        for attachment in fact.attachments
    }
    gate_input = GateInput(
        candidate=subject, alias="champion", policy=policy, holder=holder, approvals=approvals, actor=actor
    )
    return evaluate(gate_input, GateWork(kept.__getitem__))


def verdict(report: GateReport, rule: str) -> RuleVerdict:
    return next(entry for entry in report.verdicts if entry.rule == rule)
