"""The lines between noa and a recipe's process: one JSON object each, to and from the values of the steps.

Only plain JSON crosses; arrays lie as `.npz` in the job's folder and are read without pickle. `Evidence` carries its
attachments as base64; an error keeps its class, its parts and those of its facts that have a JSON form.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noa import errors
from noa.errors import NoaError, TrainingError
from noa_flows.pipeline_values import Conversion, Evaluation, Verification
from noa_registry.evidence import Attachment, Evidence, plain_json

if TYPE_CHECKING:
    from noa_training import TrainedJob

EXAMPLE_FILE = "input-example.npz"
Message = dict[str, Any]


def job_to(job: TrainedJob) -> Message:
    """Return a job as JSON values."""
    return cast("Message", json.loads(job.to_json()))


def conversion_to(value: Conversion) -> Message:
    """Return a written format as JSON values."""
    return {"format": value.format, "folder": str(value.folder), "digest": value.digest}


def conversion_from(value: Message) -> Conversion:
    """Read what `conversion_to` gave."""
    return Conversion(format=str(value["format"]), folder=Path(value["folder"]), digest=str(value["digest"]))


def evidence_to(fact: Evidence) -> Message:
    """Return a measured fact with its attachments as JSON values."""
    return {
        "kind": fact.kind,
        "subject": fact.subject,
        "digest": fact.digest,
        "passed": fact.passed,
        "values": plain_json(fact.values),
        "created_at": fact.created_at.isoformat(),
        "attachments": [
            {"media_type": part.media_type, "content": base64.b64encode(part.content).decode()}
            for part in fact.attachments
        ],
    }


def evidence_from(value: Message) -> Evidence:
    """Read what `evidence_to` gave."""
    return Evidence(
        kind=str(value["kind"]),
        subject=str(value["subject"]),
        digest=str(value["digest"]),
        passed=cast("bool | None", value["passed"]),
        values=cast("Mapping[str, object]", value["values"]),
        created_at=datetime.fromisoformat(value["created_at"]),
        attachments=tuple(
            Attachment(media_type=str(part["media_type"]), content=base64.b64decode(part["content"], validate=True))
            for part in value["attachments"]
        ),
    )


def evaluation_to(value: Evaluation) -> Message:
    """Return an evaluation with its evidence as JSON values."""
    return value.to_dict() | {"evidence": [evidence_to(fact) for fact in value.evidence]}


def evaluation_from(value: Message) -> Evaluation:
    """Read what `evaluation_to` gave."""
    return Evaluation(
        format=str(value["format"]),
        digest=str(value["digest"]),
        dataset_digest=str(value["dataset_digest"]),
        rows=int(value["rows"]),
        metrics={str(name): float(number) for name, number in value["metrics"].items()},
        evidence=tuple(map(evidence_from, value["evidence"])),
    )


def verification_to(value: Verification) -> Message:
    """Return a verification as JSON values."""
    return {"evidence": evidence_to(value.evidence), "evaluation": evaluation_to(value.evaluation)}


def verification_from(value: Message) -> Verification:
    """Read what `verification_to` gave."""
    return Verification(evidence=evidence_from(value["evidence"]), evaluation=evaluation_from(value["evaluation"]))


def error_to(error: NoaError) -> Message:
    """Return an error with its parts and facts as JSON values."""
    facts: Message = {}
    evidence: Message = {}
    for name, fact in error.facts.items():
        if isinstance(fact, Evidence):
            evidence[name] = evidence_to(fact)
        elif fact is None or isinstance(fact, str | int | float | bool):
            facts[name] = fact
    if isinstance(error, errors.DependencyMissingError):
        facts |= {"package": error.package, "extra": error.extra, "purpose": error.purpose}
    return {"parts": error.to_dict(), "facts": facts, "evidence": evidence}


def error_from(value: Message) -> NoaError:
    """Read what `error_to` gave."""
    facts = cast("Message", value["facts"]) | {name: evidence_from(fact) for name, fact in value["evidence"].items()}
    if value["parts"]["error"] == errors.DependencyMissingError.__name__:
        package, extra, purpose = (str(facts[name]) for name in ("package", "extra", "purpose"))
        return errors.DependencyMissingError(package, extra=extra, purpose=purpose)
    return rebuild_error(value["parts"], fallback="the recipe failed", facts=facts)


def rebuild_error(
    parts: Mapping[str, str | None], *, fallback: str, facts: Mapping[str, object] | None = None
) -> NoaError:
    """Return the error whose `to_dict` another process sent; one of an unknown type becomes a `TrainingError`."""
    kind = getattr(errors, parts.get("error") or "", TrainingError)
    if not (isinstance(kind, type) and issubclass(kind, NoaError)) or kind is errors.DependencyMissingError:
        kind = TrainingError
    return kind(
        parts.get("what") or fallback,
        where=parts.get("where"),
        expected=parts.get("expected"),
        received=parts.get("received"),
        remedy=parts.get("remedy"),
        **(facts or {}),
    )
