"""Endpoints: which content each one should serve, and which replicas serve it now.

A generation is one content of an endpoint: a version in a format. Its number grows by one whenever the content changes.
A replica is one process that answers for an endpoint; it acknowledges the generation that it serves and the move of the
alias that it has followed, with a lease that it renews. A version that it cannot serve it refuses, with the reason. A
replica that was killed stops renewing, and its lease ends by itself. While a lease lasts, the version behind it is
neither deleted nor purged.

Leases end by the clocks of the machines that read and write them; keep those within a few seconds of each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update

from noa.errors import ConflictError, InvalidInputError, NotFoundError, ServiceError
from noa.references import check_alias, check_name
from noa_registry.database import Database, now, to_text
from noa_registry.events.outbox import append_event
from noa_registry.json_columns import parse_time
from noa_registry.records import require_version
from noa_registry.tables import aliases, generations, refusals, replicas, versions

MAX_REPLICA_CHARS = 128
MAX_REASON_CHARS = 1000
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointGeneration:
    """One content of an endpoint. `alias` is None for an endpoint that names a number."""

    endpoint: str
    generation: int
    name: str
    number: int
    digest: str
    alias: str | None
    format: str
    created_at: datetime

    @property
    def reference(self) -> str:
        """Return e.g. `digits/3`."""
        return f"{self.name}/{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A process that serves a generation, until `expires_at` unless it renews its lease."""

    replica: str
    generation: EndpointGeneration
    acknowledged_at: datetime
    expires_at: datetime
    move: int | None = None
    """The newest move of the alias that it has followed, by its row of the ledger; 0: none yet, None: not said."""

    def __str__(self) -> str:
        serving = self.generation
        return f"`{self.replica}` of endpoint `{serving.endpoint}` serves {serving.reference}"

    def follows(self, number: int, move: int) -> bool:
        """Tell whether it serves a version and has seen the move that put it there: it cannot come to an older one."""
        return self.generation.number == number and (self.move is None or self.move >= move)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A version that a replica does not serve, and why; what it served before goes on.

    `move` is the row of the ledger that put the version there, 0 where another worker of its server did.
    """

    endpoint: str
    replica: str
    name: str
    number: int
    alias: str | None
    digest: str
    move: int
    reason: str
    refused_at: datetime

    def __str__(self) -> str:
        return f"`{self.replica}` of endpoint `{self.endpoint}` refuses {self.name}/{self.number}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """What `Registry.endpoints` offers."""

    database: Database
    clock: Callable[[], datetime] = now

    def announce(
        self,
        endpoint: str,
        name: str,
        number: int,
        *,
        alias: str | None,
        format: str,  # our word
    ) -> int:
        """Say that an endpoint serves a version from now on, and return the number of that content.

        The same content as the newest has its number; any other gets the next one.

        Raises:
            NotFoundError: there is no such version, or it is deleted.
        """
        check_name(endpoint)
        if alias is not None:
            check_alias(alias)
        with self.database.read() as connection:
            digest = _digest_of(connection, check_name(name), number)
            content = (name, number, alias, format, digest)
            newest = _newest(connection, endpoint)
            if newest is not None and _content(newest) == content:
                return newest.generation
        with self.database.write() as connection:
            require_version(connection, name, number)
            newest = _newest(connection, endpoint)
            if newest is not None and _content(newest) == content:
                return newest.generation
            generation = 1 if newest is None else newest.generation + 1
            values = {"name": name, "number": number, "alias": alias, "format": format, "digest": digest}
            key = {"endpoint": endpoint, "generation": generation}
            connection.execute(insert(generations).values(**key, **values, created_at=to_text(self.clock())))
            append_event(connection, "generation.announced", name=name, payload={**key, **values})
            return generation

    def acknowledge(
        self, endpoint: str, replica: str, generation: int, *, lease_s: float, move: int | None = None
    ) -> None:
        """Say that a replica serves a generation, and will for `lease_s` seconds unless it says so again.

        `move` is the newest move of the alias that it has followed.

        Raises:
            NotFoundError: the endpoint has no such generation.
        """
        if not replica or len(replica) > MAX_REPLICA_CHARS or lease_s <= 0:
            raise InvalidInputError(
                "this is no lease", expected="a replica's name and lease_s > 0", received=f"`{replica}`, {lease_s} s"
            )
        moment = self.clock()
        values = {
            "generation": generation,
            "acknowledged_at": to_text(moment),
            "expires_at": to_text(moment + timedelta(seconds=lease_s)),
            "move": move,
        }
        with self.database.write() as connection:
            here = and_(generations.c.endpoint == endpoint, generations.c.generation == generation)
            if connection.execute(select(generations.c.generation).where(here)).first() is None:
                raise NotFoundError(
                    f"endpoint `{endpoint}` has no generation {generation}", remedy="Announce what it serves first"
                )
            lease = and_(replicas.c.endpoint == endpoint, replicas.c.replica == replica)
            if connection.execute(update(replicas).where(lease).values(**values)).rowcount == 0:
                connection.execute(insert(replicas).values(endpoint=endpoint, replica=replica, **values))

    def refuse(
        self,
        endpoint: str,
        replica: str,
        *,
        name: str,
        number: int,
        digest: str,
        alias: str | None,
        move: int,
        reason: str,
        lease_s: float,
    ) -> None:
        """Say that a replica does not serve a version, and why, for `lease_s` seconds unless it says so again.

        The first replica of an endpoint that says so of a move is an event.
        """
        moment = self.clock()
        values = {"name": name, "number": number, "alias": alias, "digest": digest, "move": move}
        values |= {"reason": reason[:MAX_REASON_CHARS], "refused_at": to_text(moment)}
        until = {"expires_at": to_text(moment + timedelta(seconds=lease_s))}
        same = refusals.c.endpoint == endpoint, refusals.c.digest == digest, refusals.c.move == move
        with self.database.write() as connection:
            is_known = connection.execute(select(refusals.c.replica).where(*same)).first() is not None
            mine = and_(refusals.c.endpoint == endpoint, refusals.c.replica == replica)
            connection.execute(delete(refusals).where(or_(mine, refusals.c.expires_at <= to_text(moment))))
            connection.execute(insert(refusals).values(endpoint=endpoint, replica=replica, **values, **until))
            if not is_known:
                append_event(connection, "generation.refused", name=name, payload={"endpoint": endpoint, **values})

    def accept(self, endpoint: str, replica: str) -> None:
        """Say that a replica refuses nothing any more."""
        with self.database.write() as connection:
            connection.execute(delete(refusals).where(refusals.c.endpoint == endpoint, refusals.c.replica == replica))

    def release(self, endpoint: str, replica: str) -> None:
        """Say that a replica serves an endpoint no longer, nor refuses anything; one that is not known is no error."""
        with self.database.write() as connection:
            for table in (replicas, refusals):
                connection.execute(delete(table).where(table.c.endpoint == endpoint, table.c.replica == replica))

    def live_refusals(self, *, name: str | None = None) -> list[Refusal]:
        """Return what replicas refuse now, by endpoint and replica."""
        with self.database.read() as connection:
            return load_refusals(connection, self.clock(), name=name)

    def live_replicas(self, *, endpoint: str | None = None, name: str | None = None) -> list[Replica]:
        """Return the replicas whose lease lasts, by endpoint and name."""
        with self.database.read() as connection:
            return load_replicas(connection, self.clock(), endpoint=endpoint, name=name)

    def generations(self, endpoint: str, *, limit: int = 20) -> list[EndpointGeneration]:
        """Return what an endpoint served, newest first."""
        query = (
            select(generations)
            .where(generations.c.endpoint == endpoint)
            .order_by(generations.c.generation.desc())
            .limit(limit)
        )
        with self.database.read() as connection:
            return [to_generation(row) for row in connection.execute(query)]

    def wait_until_served(
        self,
        name: str,
        number: int,
        *,
        alias: str,
        timeout_s: float,
        tell: Callable[[Sequence[Replica]], None] = lambda _late: None,
    ) -> list[Replica]:
        """Return when every live replica that follows `name@alias` serves version `number`: those replicas.

        A replica counts once it has followed the very move that put the version there: what it said before that, it
        said of another moment, and it may serve something else by now.

        `tell` is called with the replicas that are still behind. A server that is killed meanwhile drops out when its
        lease ends; one that starts meanwhile is waited for.

        Raises:
            ConflictError: the alias was moved on meanwhile.
            ServiceError: a replica refuses the version, or `timeout_s` passed; names the replicas.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self.database.read() as connection:
                held = aliases.c.number, aliases.c.sequence
                where = aliases.c.name == name, aliases.c.alias == alias
                holder = connection.execute(select(*held).where(*where)).one_or_none()
                following = [
                    replica
                    for replica in load_replicas(connection, self.clock(), endpoint=None, name=name)
                    if replica.generation.alias == alias
                ]
                refused = [one for one in load_refusals(connection, self.clock(), name=name) if one.alias == alias]
            if holder is None or holder.number != number:
                raise ConflictError(
                    f"`{name}@{alias}` was moved on while we waited",
                    expected=f"version {number}",
                    received="no holder" if holder is None else f"version {holder.number}",
                    remedy=f"See who moved it with: noa models history {name}@{alias}",
                )
            _raise_refused([one for one in refused if one.number == number and one.move >= holder.sequence])
            late = [replica for replica in following if not replica.follows(number, holder.sequence)]
            if not late:
                return following
            tell(late)
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"`{name}@{alias}` is {name}/{number} now, but not every server follows",
                    where=", ".join(dict.fromkeys(f"endpoint `{one.generation.endpoint}`" for one in late)),
                    expected=f"all {len(following)} replicas at {name}/{number} within {timeout_s:g} s",
                    received="; ".join(_describe_late(replica, number, holder.sequence) for replica in late),
                    remedy="The alias has moved and stays so; look at these servers, or wait longer with --timeout",
                    replicas=tuple(late),
                )
            time.sleep(_POLL_S)


def load_replicas(
    connection: Connection, moment: datetime, *, endpoint: str | None = None, name: str | None = None
) -> list[Replica]:
    """Return the replicas whose lease lasts at `moment`."""
    same = and_(replicas.c.endpoint == generations.c.endpoint, replicas.c.generation == generations.c.generation)
    query = (
        select(generations, replicas.c.replica, replicas.c.acknowledged_at, replicas.c.expires_at, replicas.c.move)
        .join(replicas, same)
        .where(replicas.c.expires_at > to_text(moment))
        .order_by(replicas.c.endpoint, replicas.c.replica)
    )
    if endpoint is not None:
        query = query.where(replicas.c.endpoint == endpoint)
    if name is not None:
        query = query.where(generations.c.name == name)
    return [
        Replica(
            replica=row.replica,
            generation=to_generation(row),
            acknowledged_at=_lease_time(row, "acknowledged_at"),
            expires_at=_lease_time(row, "expires_at"),
            move=row.move,
        )
        for row in connection.execute(query)
    ]


def load_refusals(connection: Connection, moment: datetime, *, name: str | None = None) -> list[Refusal]:
    """Return what replicas refuse at `moment`."""
    query = select(refusals).where(refusals.c.expires_at > to_text(moment))
    if name is not None:
        query = query.where(refusals.c.name == name)
    return [
        Refusal(
            endpoint=row.endpoint,
            replica=row.replica,
            name=row.name,
            number=row.number,
            alias=row.alias,
            digest=row.digest,
            move=row.move,
            reason=row.reason,
            refused_at=parse_time(
                row.refused_at,
                of=f"the refusal of replica `{row.replica}` of endpoint `{row.endpoint}`",
                column="noa_refusals.refused_at",
                remedy="A server that runs writes it anew with its next lease; start the server again",
            ),
        )
        for row in connection.execute(query.order_by(refusals.c.endpoint, refusals.c.replica))
    ]


def to_generation(row: Row[Any]) -> EndpointGeneration:
    """Return the value of a row of `noa_generations`."""
    return EndpointGeneration(
        endpoint=row.endpoint,
        generation=row.generation,
        name=row.name,
        number=row.number,
        digest=row.digest,
        alias=row.alias,
        format=row.format,
        created_at=parse_time(
            row.created_at,
            of=f"generation {row.generation} of endpoint `{row.endpoint}`",
            column="noa_generations.created_at",
        ),
    )


def _raise_refused(refused: Sequence[Refusal]) -> None:
    """Raise `ServiceError` if a replica refuses what is waited for."""
    if refused:
        first = refused[0]
        raise ServiceError(
            f"`{first.name}@{first.alias}` is {first.name}/{first.number} now, and a server refuses it",
            where=", ".join(dict.fromkeys(f"endpoint `{one.endpoint}`" for one in refused)),
            expected=f"{first.name}/{first.number} served",
            received=first.reason,
            remedy=f"What was served goes on; move the alias back with: noa models rollback {first.name}@{first.alias}",
            refusals=tuple(refused),
        )


def _describe_late(replica: Replica, number: int, move: int) -> str:
    if replica.generation.number != number:
        return str(replica)
    return f"{replica}, and has not confirmed the move yet (ledger row {move})"


def _lease_time(row: Row[Any], column: str) -> datetime:
    return parse_time(
        getattr(row, column),
        of=f"replica `{row.replica}` of endpoint `{row.endpoint}`",
        column=f"noa_replicas.{column}",
        remedy="A server that runs writes it anew with its next lease; start the server again",
    )


def _digest_of(connection: Connection, name: str, number: int) -> str:
    require_version(connection, name, number)
    query = select(versions.c.digest).where(versions.c.name == name, versions.c.number == number)
    return str(connection.execute(query).scalar_one())


def _newest(connection: Connection, endpoint: str) -> Row[Any] | None:
    query = (
        select(generations).where(generations.c.endpoint == endpoint).order_by(generations.c.generation.desc()).limit(1)
    )
    return connection.execute(query).one_or_none()


def _content(row: Row[Any]) -> tuple[str, int, str | None, str, str]:
    return row.name, row.number, row.alias, row.format, row.digest
