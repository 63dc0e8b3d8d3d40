"""Data that a run uses, as MLflow's tables keep it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInput:
    """Data that a run uses. `digest` has room for 36 characters.

    `source`, `schema` and `profile` are JSON texts; `context` says for what the data is used, e.g. `training`.
    """

    name: str
    digest: str
    context: str
    source_type: str
    source: str
    schema: str
    profile: str
