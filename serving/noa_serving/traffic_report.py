"""How the requests of one endpoint are split, and what its shadows have shown, from one look at a server.

    rows = report(look(server), "digits")

Counts are of all workers since the server started, those of a shadow since its two versions are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from noa.settings import FALLBACK_ARM, MAIN_ARM
from noa_serving.live import Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one question of a verdict comes to: the value, and what it may be at most and least."""

    name: str
    value: float | None
    low: float
    high: float
    limit: float
    count: int
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTraffic:
    """One arm of an endpoint on one server.

    `requests` were answered by it, or of a shadow compared; `errors` are answers of 500 and above, or what a shadow
    could not compute. `dropped` found no room. Everything from `agreement` on is of shadows only: `verdict` is `go on`,
    `promote` or `roll back`, `waits_for` says what is missing for the first, `done` what followed from the others.
    """

    address: str
    pid: int
    name: str
    mode: str
    model: str
    state: str
    version: int | None = None
    digest: str | None = None
    share: float | None = None
    requests: int = 0
    errors: int = 0
    dropped: int = 0
    compared_with: int | None = None
    agreement: float | None = None
    latency_ratio: float | None = None
    main_p50_ms: float | None = None
    arm_p50_ms: float | None = None
    findings: tuple[Finding, ...] = ()
    verdict: str | None = None
    reason: str | None = None
    waits_for: str | None = None
    done: str | None = None
    outputs: Mapping[str, Mapping[str, Any]] | None = None

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return what the value that a question asks for may be; None before anything was seen."""
        found = next((one for one in self.findings if one.name == name and one.count), None)
        return None if found is None else (found.low, found.high)


def report(look: Look, endpoint: str) -> list[ArmTraffic]:
    """Return the arms of an endpoint, the main version first; empty where the server has no such endpoint."""
    table = cast("Mapping[str, Mapping[str, Any]]", look.status.get("endpoints", {}))
    row = table.get(endpoint)
    return [] if row is None else list(_rows(look, endpoint, row))


def _rows(look: Look, endpoint: str, row: Mapping[str, Any]) -> Iterator[ArmTraffic]:
    arms = cast("Mapping[str, Mapping[str, Any]]", row.get("arms", {}))
    fallback = cast("Mapping[str, Any] | None", row.get("fallback"))
    shadows = cast("Mapping[str, Mapping[str, Any]]", row.get("shadows", {}))
    has_arms = bool(arms) or fallback is not None
    left = 1.0 - sum(one["share"] for one in arms.values() if one["takes"] and one["mode"] == "answer")
    yield _answering(look, endpoint, MAIN_ARM if has_arms else None, row, share=max(0.0, left))
    for name, arm in arms.items():
        if arm["mode"] == "shadow":
            yield _shadow(look, name, arm, shadows.get(name, {}))
        else:
            yield _answering(look, endpoint, name, arm, share=arm["share"])
    if fallback is not None:
        yield _answering(look, endpoint, FALLBACK_ARM, fallback, share=None)


def _answering(
    look: Look, endpoint: str, arm: str | None, row: Mapping[str, Any], *, share: float | None
) -> ArmTraffic:
    labels = {"endpoint": endpoint} if arm is None else {"endpoint": endpoint, "arm": arm}
    found = [one for one in look.samples if one.name == "noa_requests_total" and labels.items() <= one.labels.items()]
    return ArmTraffic(
        address=look.server.address.url,
        pid=look.server.address.pid,
        name=arm or MAIN_ARM,
        mode="fallback" if arm == FALLBACK_ARM else "answer",
        model=str(row["model"]),
        state=str(row["state"]),
        version=row.get("version"),
        digest=row.get("digest"),
        share=share,
        requests=int(sum(one.value for one in found)),
        errors=int(sum(one.value for one in found if int(one.labels["code"]) >= 500)),
    )


def _shadow(look: Look, name: str, arm: Mapping[str, Any], row: Mapping[str, Any]) -> ArmTraffic:
    counts = cast("Mapping[str, Any]", row.get("counts", {}))
    verdict = cast("Mapping[str, Any]", row.get("verdict", {}))
    questions = cast("list[Mapping[str, Any]]", verdict.get("questions", []))
    fields = ("name", "value", "low", "high", "limit", "count", "answer")
    return ArmTraffic(
        address=look.server.address.url,
        pid=look.server.address.pid,
        name=name,
        mode="shadow",
        model=str(arm["model"]),
        state=str(row.get("state", "idle")) if arm["takes"] else str(arm["state"]),
        version=arm.get("version"),
        digest=arm.get("digest"),
        share=arm["share"],
        requests=int(counts.get("compared", 0)),
        errors=int(counts.get("failed", 0)),
        dropped=int(counts.get("dropped", 0)),
        compared_with=row.get("compared_with"),
        agreement=counts.get("agreement"),
        latency_ratio=counts.get("latency_ratio"),
        main_p50_ms=counts.get("main_p50_ms"),
        arm_p50_ms=counts.get("arm_p50_ms"),
        findings=tuple(Finding(**{field: one[field] for field in fields}) for one in questions),
        verdict=verdict.get("decision"),
        reason=verdict.get("reason"),
        waits_for=verdict.get("waits_for") or None,
        done=row.get("done"),
        outputs=counts.get("outputs"),
    )
