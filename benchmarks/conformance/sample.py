"""A tenth of the suite that touches every operator: which cases the tests run on every change."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from benchmarks.conformance.cases import CaseInfo, Suite

_ONE_OF = 40
"""Of each kind and form of case, one of so many more than the one per operator."""


def sample(suite: Suite) -> list[str]:
    """Return the names, sorted: of each operator one node case, of everything else one in some, by hash of the name."""
    operators: dict[str, list[CaseInfo]] = defaultdict(list)
    kinds: dict[tuple[str, bool], list[CaseInfo]] = defaultdict(list)
    for info in sorted(suite.infos.values(), key=lambda info: hashlib.sha256(info.name.encode()).digest()):
        kinds[info.kind, info.is_expanded].append(info)
        if info.kind == "node" and not info.is_expanded:
            operators[info.op].append(info)
    chosen = {infos[0].name for infos in operators.values()}
    for infos in kinds.values():
        chosen |= {info.name for info in infos[::_ONE_OF]}
    return sorted(chosen)
