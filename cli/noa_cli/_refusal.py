"""A gate's refusal for people: a line per rule that refuses, with short digests, and what is the same said once.

The error itself, as `--json` and Python show it, holds everything in full.
"""

from __future__ import annotations

import re

from noa.digests import short_digest
from noa.errors import GateRefusedError, NoaError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONG = 24  # what is received and longer is said once, as `the same as for ...`


def refusal_lines(error: NoaError) -> list[str]:
    """Return the lines that tell of a refusal by a gate; none for another error."""
    if not isinstance(error, GateRefusedError):
        return []
    from noa_registry import GateReport

    report = error.facts.get("report")
    if not isinstance(report, GateReport) or not report.refusals:
        return []
    rules: dict[tuple[str, str], list[str]] = {}
    for verdict in report.refusals:
        rules.setdefault((_short(verdict.expected), _short(verdict.received)), []).append(verdict.rule)
    first: dict[str, str] = {}
    counted = f"{len(report.refusals)} of {len(report.verdicts)} rules"
    lines = [f"the gate refuses `{report.reference}` as `{report.alias}`: {counted}"]
    for (expected, received), names in rules.items():
        said = first.setdefault(received, names[0])
        if said != names[0] and len(received) > _LONG:
            received = f"the same as for {said}"
        lines.append(f"  {', '.join(names)}: expected {expected}, received {received}")
    return lines if error.remedy is None else [*lines, error.remedy]


def _short(text: str) -> str:
    return _DIGEST.sub(lambda found: f"sha256:{short_digest(found.group())}", text)
