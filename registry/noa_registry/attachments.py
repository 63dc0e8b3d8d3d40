"""Attachments: bytes that belong to evidence, named by their SHA-256, written once, verified whenever they are read.

They lie in the database, in the transaction of the evidence that names them, so that neither is there without the
other. The same bytes are kept once, whatever number of facts name them.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, insert, select, type_coerce
from sqlalchemy.types import NullType

from noa.digests import sha256_bytes
from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa_registry.database import now, to_text
from noa_registry.evidence import Attachment, Evidence, attachment_digests, check_attachments
from noa_registry.tables import attachments

_AS_STORED: NullType = NullType()


def insert_attachments(connection: Connection, facts: Iterable[Evidence]) -> None:
    """Write what the facts carry, in their transaction.

    Raises:
        InvalidInputError: a fact names an attachment that it does not carry and that is not there, or one is too large.
    """
    for fact in facts:
        check_attachments(fact)
        carried = {attachment.digest: attachment for attachment in fact.attachments}
        for digest in attachment_digests(fact):
            if connection.execute(select(attachments.c.digest).where(attachments.c.digest == digest)).first():
                continue
            if digest not in carried:
                raise InvalidInputError(
                    f"{fact.kind} evidence of `{fact.subject}` comes without its attachment",
                    expected=f"the bytes of {digest} in `attachments`",
                    received="nothing",
                    remedy="Read them where the evidence is from, with `Registry.attachment`",
                )
            connection.execute(
                insert(attachments).values(
                    digest=digest,
                    media_type=carried[digest].media_type,
                    content=carried[digest].content,
                    created_at=to_text(now()),
                )
            )


def load_attachment(connection: Connection, digest: str) -> Attachment:
    """Return the bytes that a digest names, after hashing them again.

    Raises:
        NotFoundError: there are none.
        IntegrityError: they were changed.
    """
    stored = type_coerce(attachments.c.content, _AS_STORED)  # SQLite keeps texts and numbers in any column
    query = select(attachments.c.media_type, stored.label("content")).where(attachments.c.digest == digest)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("no attachment has this digest", received=digest)
    content = bytes(row.content) if isinstance(row.content, bytes | memoryview) else str(row.content).encode()
    found = sha256_bytes(content)
    if found != digest:
        raise IntegrityError("an attachment was changed", expected=digest, received=found, file="noa_attachments")
    return Attachment(media_type=str(row.media_type), content=content)
