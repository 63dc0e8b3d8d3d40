"""Every row has the digest of its record: those that were written before there were records get theirs now."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_KEYS = {"noa_versions": ("name", "number"), "noa_formats": ("name", "number", "format"), "noa_evidence": ("id",)}
_PAGE = 1000


def upgrade() -> None:
    # From now on a row without one is a changed row.
    connection = op.get_bind()
    for name, keys in _KEYS.items():
        table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        without = sa.select(table).where(table.c.record.is_(None)).limit(_PAGE)
        while rows := connection.execute(without).mappings().all():
            for row in rows:
                here = sa.and_(*(table.c[key] == row[key] for key in keys))
                connection.execute(sa.update(table).where(here).values(record=_digest(dict(row))))


def _digest(row: dict[str, object]) -> str:
    values = {key: value for key, value in row.items() if key not in ("id", "record") and value is not None}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
