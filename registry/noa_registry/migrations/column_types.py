"""Types that revisions use, as they were when the first one was written. They never change: make a new one instead."""

from __future__ import annotations

from sqlalchemy import String


def byte_string(length: int) -> String:
    """Return a text that sorts by its bytes on both databases."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")
