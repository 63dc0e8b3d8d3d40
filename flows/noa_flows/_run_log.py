"""Texts of a flow run: one line per event of a job, and the summary at its end."""

from __future__ import annotations

from collections.abc import Sequence

from noa_flows.pipeline_values import Candidate, Deployment, Promotion
from noa_flows.selection import explain_tie
from noa_registry import GateReport
from noa_training import CheckpointWritten, EarlyStopped, Epoch, Failed, Finished, JobEvent, Resumed, Started, Warned


def describe_job_event(event: JobEvent) -> str | None:
    """Return a line for the log, None for what is too frequent for one."""
    match event:
        case Started():
            return f"job {event.job_id} (attempt {event.attempt}) with {event.rows} rows, {event.epochs} epochs"
        case Resumed():
            return f"continues after step {event.step} from {event.checkpoint}"
        case Epoch():
            values = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            return f"epoch {event.epoch}/{event.epochs}: {values}{' (best)' if event.is_best else ''}"
        case EarlyStopped():
            return f"stopped early after epoch {event.epoch}; best was {event.best_epoch}"
        case Warned():
            return f"warning about {event.subject}: {event.message}"
        case Finished():
            return f"finished after {event.steps} steps in {event.seconds:.1f} s"
        case Failed():
            return f"{event.state}: {event.message}"
        case CheckpointWritten():
            return f"checkpoint at step {event.step}"
        case _:
            return None


def render_summary(
    candidates: Sequence[Candidate],
    best: Candidate,
    report: GateReport,
    promotion: Promotion,
    deployment: Deployment,
    *,
    metric: str,
) -> str:
    """Return the summary of a run as Markdown; `metric` on the validation split chose among the candidates."""
    names = list(dict.fromkeys(name for candidate in candidates for name in candidate.metrics))
    columns = [f"{metric} (validation)", *(f"{name} (test)" for name in names)]
    before = f"version {promotion.previous}" if promotion.previous else "nobody"
    lines = [
        f"# {promotion.reference} is {best.version.name}@{promotion.alias}",
        "",
        f"Before: {before}. Ledger row {promotion.sequence}. Digest `{promotion.digest}`.",
        "",
        "| backend | version | " + " | ".join(columns) + " | steps | seconds |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for candidate in candidates:
        mark = " **(chosen)**" if candidate is best else ""
        found = [candidate.validation.get(metric), *(candidate.metrics.get(name) for name in names)]
        values = " | ".join("" if value is None else f"{value:.6g}" for value in found)
        lines.append(
            f"| {candidate.backend}{mark} | {candidate.version.reference} | {values} "
            f"| {candidate.job.steps} | {candidate.job.seconds:.1f} |"
        )
    if tie := explain_tie(candidates, metric):
        lines += ["", f"Of equals in {metric}: {tie}."]
    lines += ["", "| rule | expected | received |", "|---|---|---|"]
    lines += [f"| {v.rule} | {_cell(v.expected)} | {_cell(v.received)} |" for v in report.verdicts]
    served = f"by {', '.join(deployment.endpoints)} at {deployment.address}" if deployment.endpoints else "by nobody"
    return "\n".join([*lines, "", f"Served {served}."])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
