"""Standing: what is no longer there or no longer answers, said in the same words in every drawing."""

from __future__ import annotations

from noa_registry.lineage.graph import LineageNode


def standing(node: LineageNode) -> str | None:
    """Return what became of a node that is not in use any more, None of one that is; times are UTC dates."""
    facts = node.facts
    if "purged_at" in facts:
        return f"purged {str(facts['purged_at'])[:10]}"
    if "in_trash_since" in facts:
        return f"in the trash since {str(facts['in_trash_since'])[:10]}"
    if "ended_at" in facts:
        return f"ended {str(facts['ended_at'])[:10]}"
    if facts.get("replicas") == 0:
        return "not served now"
    return None
