"""Each version has the set of its evidence, by which a removed fact is found: from now on, for what is there."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

from noa_registry.migrations.column_types import byte_string

revision = "0004"
down_revision = "0003"

_GENESIS = "sha256:" + "0" * 64
_PAGE = 1000


def upgrade() -> None:
    op.create_table(
        "noa_evidence_sets",
        sa.Column("name", byte_string(128), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("facts", sa.Integer(), nullable=False),
        sa.Column("digest", byte_string(71), nullable=False),
        sa.CheckConstraint("facts >= 0"),
        sa.ForeignKeyConstraint(["name", "number"], ["noa_versions.name", "noa_versions.number"]),
    )
    connection = op.get_bind()
    tables = sa.MetaData()
    versions = sa.Table("noa_versions", tables, autoload_with=connection)
    evidence = sa.Table("noa_evidence", tables, autoload_with=connection)
    sets = sa.Table("noa_evidence_sets", tables, autoload_with=connection)
    keys = sa.select(versions.c.name, versions.c.number).order_by(versions.c.name, versions.c.number)
    after: tuple[str, int] | None = None
    while True:
        page = keys if after is None else keys.where(sa.tuple_(versions.c.name, versions.c.number) > after)
        rows = connection.execute(page.limit(_PAGE)).all()
        if not rows:
            return
        after = (rows[-1].name, rows[-1].number)
        for name, number in rows:
            records = sa.select(evidence.c.record).where(evidence.c.name == name, evidence.c.number == number)
            facts, digest = 0, _GENESIS
            for record in connection.execute(records.order_by(evidence.c.id)).scalars():
                facts, digest = facts + 1, _chained(digest, record)
            connection.execute(sets.insert().values(name=name, number=number, facts=facts, digest=digest))


def _chained(digest: str, record: str | None) -> str:
    text = json.dumps([digest, record], separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
