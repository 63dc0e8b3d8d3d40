"""The crew: the workers of one server, what each of them serves, and how they agree on what all serve.

For each endpoint there is an agreement: the content that every worker serves. Who sees the alias point elsewhere opens
a ballot for the new content; every worker that follows loads it beside the old one and votes. It becomes the agreement
in the moment in which all live workers that serve the endpoint have it ready; one that cannot load it ends the ballot
for all. A worker that dies, or whose event loop has stood still for `SILENT_S`, has no vote; one that comes back serves
what is agreed before it takes connections. An agreement is written under a lock that a death releases, read without
one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from noa_serving._board import Board, open_board, private_board

SILENT_S = 10.0
"""A worker that has not beaten for so long is not waited for; it beats every `BEAT_S`."""

BEAT_S = 1.0

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_REASON_BYTES = 300
_STARTED = 0  # flags: whether every worker was up once, then for each endpoint whether every worker served it once


class Content(NamedTuple):
    """What an endpoint serves."""

    number: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One attempt to agree on `content`. An empty `reason` means that it is open; else it was refused for that."""

    id: int
    content: Content
    opened_at: float
    attempts: int
    reason: str = ""
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A version that the workers went back from by themselves, and the move of the alias that had put it there.

    The alias may still point to it: nobody follows that move again.
    """

    content: Content
    move: int
    reason: str
    back_to: int
    """The number of the version that they went back to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What all workers serve for one endpoint (None: nothing yet), the attempt to serve something else, and what they
    went back from last."""

    content: Content | None = None
    ballot: Ballot | None = None
    ballots: int = 0
    rejected: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A worker's vote in a ballot; an empty `reason` means that it has the content ready."""

    ballot: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a worker says of itself. `accepts`: it takes connections; `was_tried`: it has tried every endpoint once."""

    pid: int
    accepts: bool = False
    was_tried: bool = False
    serving: dict[str, Content] = field(default_factory=dict[str, Content])
    votes: dict[str, Vote] = field(default_factory=dict[str, Vote])


class Crew:
    """One worker's membership. Votes and agreements are the follower's thread's only."""

    def __init__(self, board: Board, names: Sequence[str], *, timeout_s: float = 300.0) -> None:
        self._board = board
        self._names = {name: index + 1 for index, name in enumerate(names)}
        self._timeout_s = timeout_s
        self._publishing = threading.Lock()
        self._me = Worker(pid=os.getpid())
        self._publish(lambda me: me)

    @property
    def slot(self) -> int:
        """This worker's number; the one that takes its place has it again."""
        return self._board.slot

    @property
    def size(self) -> int:
        """How many workers the server has when all are up."""
        return self._board.size

    def beat(self) -> None:
        """Say that the event loop turns."""
        self._board.beat()

    def agreement(self, name: str) -> Agreement:
        """Return what is agreed for an endpoint."""
        return self._agreements().get(name, Agreement())

    def open_ballot(self, name: str, content: Content, now: float) -> tuple[Ballot, bool]:
        """Return the ballot about `content`, and whether it was opened now; a refused one is its answer for a while."""
        with self._board.locked():
            table = self._agreements()
            last = table.get(name, Agreement())
            ballot = last.ballot
            is_same = ballot is not None and ballot.content == content
            if ballot is not None and is_same and (not ballot.reason or now < ballot.retry_at):
                return ballot, False
            attempts = ballot.attempts if ballot is not None and is_same else 0
            opened = Ballot(id=last.ballots + 1, content=content, opened_at=now, attempts=attempts)
            self._agree({**table, name: replace(last, ballot=opened, ballots=opened.id)})
            return opened, True

    def drop_ballot(self, name: str) -> None:
        """Forget the ballot of an endpoint whose alias points to what is agreed."""
        if self.agreement(name).ballot is None:
            return
        with self._board.locked():
            table = self._agreements()
            self._agree({**table, name: replace(table.get(name, Agreement()), ballot=None)})

    def vote(self, name: str, ballot_id: int, reason: str = "") -> None:
        """Say that this worker has the content of a ballot ready, or why it cannot have it."""
        vote = Vote(ballot=ballot_id, reason=_short(reason))
        self._publish(lambda me: replace(me, votes={**me.votes, name: vote}))

    def decide(self, name: str, now: float) -> Agreement:
        """Return the agreement, after the votes of an open ballot were counted."""
        agreement = self.agreement(name)
        if self._verdict(name, agreement.ballot, now) is None:
            return agreement
        with self._board.locked():
            table = self._agreements()
            agreement = table.get(name, Agreement())
            verdict = self._verdict(name, agreement.ballot, now)
            if verdict is None or agreement.ballot is None:
                return agreement
            if verdict:
                attempts = agreement.ballot.attempts + 1
                pause_s = min(_FIRST_PAUSE_S * 2 ** (attempts - 1), _LONGEST_PAUSE_S)
                refused = replace(agreement.ballot, reason=verdict, attempts=attempts, retry_at=now + pause_s)
                agreement = replace(agreement, ballot=refused)
            else:
                agreement = replace(agreement, content=agreement.ballot.content, ballot=None, rejected=None)
            self._agree({**table, name: agreement})
            return agreement

    def go_back(self, name: str, content: Content, rejection: Rejection) -> bool:
        """Agree on `content` in place of the rejected version, if that is still what all serve; whether it was.

        No vote is asked for: who serves the rejected version has `content` still loaded.
        """
        with self._board.locked():
            table = self._agreements()
            agreement = table.get(name, Agreement())
            if agreement.content != rejection.content:
                return False
            rejection = replace(rejection, reason=_short(rejection.reason))
            self._agree({**table, name: replace(agreement, content=content, ballot=None, rejected=rejection)})
            return True

    def join(self, name: str, content: Content) -> bool:
        """Say that this worker serves `content`, if that is still what is agreed; whether it is."""
        with self._board.locked():
            if self.agreement(name).content != content:
                return False
            self._publish(lambda me: replace(me, serving={**me.serving, name: content}))
            return True

    def mark_tried(self) -> None:
        """Say that this worker has tried every endpoint."""
        if not self._me.was_tried:
            self._publish(lambda me: replace(me, was_tried=True))

    def accept(self) -> None:
        """Say that this worker takes connections."""
        self._publish(lambda me: replace(me, accepts=True))

    def leave(self) -> None:
        """Say that this worker ends: it serves nothing, and is not waited for."""
        self._publish(lambda me: Worker(pid=me.pid))

    def all_serve(self, name: str) -> bool:
        """Tell whether every worker that serves the endpoint serves what is agreed."""
        content = self.agreement(name).content
        served = [worker.serving[name] for worker in self._answering().values() if name in worker.serving]
        return content is not None and all(one == content for one in served)

    def others_serve(self, name: str) -> bool:
        """Tell whether another worker answers for the endpoint."""
        return any(name in worker.serving for slot, worker in self._answering().items() if slot != self.slot)

    def is_started(self) -> bool:
        """Tell whether every worker was up and had tried every endpoint, at some time."""
        if not self._board.flag(_STARTED):
            workers = self._answering().values()
            if len(workers) < self.size or not all(worker.was_tried for worker in workers):
                return False
            self._board.raise_flag(_STARTED)
        return True

    def is_ready(self, name: str) -> bool:
        """Tell whether the server answers for an endpoint.

        First only when all workers serve the same content. From then on a worker that is dead or stands still takes no
        connection, so the others answer; one that takes connections and serves nothing makes it false.
        """
        workers = self._answering().values()
        flag = self._names[name]
        if not self._board.flag(flag):
            content = self.agreement(name).content
            same = [worker for worker in workers if worker.serving.get(name) == content]
            if content is None or len(same) < self.size:
                return False
            self._board.raise_flag(flag)
        serving = [worker for worker in workers if name in worker.serving]
        return bool(serving) and all(name in worker.serving for worker in workers if worker.accepts)

    def others_up(self) -> list[int]:
        """Return the numbers of the other workers whose process lives."""
        return [slot for slot in range(self.size) if slot != self.slot and self._board.is_live(slot)]

    def rows(self) -> list[dict[str, object]]:
        """Return what is known of each worker, for people."""
        rows: list[dict[str, object]] = []
        for slot in range(self.size):
            worker = self._read(slot)
            row: dict[str, object] = {"worker": slot, "state": self._state(slot, worker)}
            if worker is not None and self._board.is_live(slot):
                versions = {name: content.number for name, content in worker.serving.items()}
                row |= {"pid": worker.pid, "versions": versions}
            rows.append(row)
        return rows

    def shortfall(self) -> str | None:
        """Return which workers do not answer, or do not serve what is agreed; None if there is nothing to say."""
        agreed = {name: self.agreement(name).content for name in self._names}
        texts: list[str] = []
        for slot in range(self.size):
            worker = self._read(slot)
            state = self._state(slot, worker)
            if state != "serving" or worker is None:
                texts.append(f"worker {slot} of {self.size} is {state}")
                continue
            for name, content in agreed.items():
                if content is not None and worker.serving.get(name) != content:
                    texts.append(f"worker {slot} of {self.size} does not serve version {content.number} of `{name}`")
        return "; ".join(texts) or None

    def close(self) -> None:
        """Give this worker's place back."""
        self._board.close()

    def _verdict(self, name: str, ballot: Ballot | None, now: float) -> str | None:
        """Return "" if all agree, a reason if the ballot has failed, None if it goes on (or there is none)."""
        if ballot is None or ballot.reason:
            return None
        ready, late = False, list[int]()
        for slot, worker in self._answering().items():
            vote = worker.votes.get(name)
            if vote is not None and vote.ballot == ballot.id:
                if vote.reason:
                    return vote.reason if self.size == 1 else f"worker {slot}: {vote.reason}"
                ready = True
            elif name in worker.serving:
                late.append(slot)
        if late and now - ballot.opened_at > self._timeout_s:
            names = ", ".join(f"worker {slot}" for slot in late)
            return f"{names} did not have it ready within {self._timeout_s:g} s"
        return "" if ready and not late else None

    def _answering(self) -> dict[int, Worker]:
        """Return the live workers whose event loop turns, by slot."""
        found: dict[int, Worker] = {}
        for slot in range(self.size):
            worker = self._read(slot)
            if worker is not None and self._state(slot, worker) in ("serving", "starting"):
                found[slot] = worker
        return found

    def _state(self, slot: int, worker: Worker | None) -> str:
        if not self._board.is_live(slot):
            return "dead" if worker is not None else "not up yet"
        if worker is None:
            return "starting"
        if slot != self.slot and self._board.silent_s(slot) > SILENT_S:
            return "silent"
        return "serving" if worker.serving else "starting"

    def _read(self, slot: int) -> Worker | None:
        if slot == self.slot:
            return self._me
        payload = self._board.cells[slot].read()[1]
        return None if not payload else _worker(orjson.loads(payload))

    def _publish(self, change: Callable[[Worker], Worker]) -> None:
        with self._publishing:
            worker = change(self._me)
            self._board.cells[self.slot].write(orjson.dumps(worker, default=list))
            self._me = worker

    def _agreements(self) -> dict[str, Agreement]:
        payload = self._board.agreement.read()[1]
        return {name: _agreement(row) for name, row in orjson.loads(payload or b"{}").items()}

    def _agree(self, table: dict[str, Agreement]) -> None:
        self._board.agreement.write(orjson.dumps(table, default=list))


def lone_crew(names: Sequence[str]) -> Crew:
    """Return the crew of a process that is a server of its own."""
    return Crew(private_board(endpoints=len(names)), names)


def join_crew(folder: Path, names: Sequence[str], *, size: int, timeout_s: float) -> Crew:
    """Take a free place among the `size` workers whose board is in `folder`."""
    return Crew(open_board(folder, size=size, endpoints=len(names)), names, timeout_s=timeout_s)


def _short(reason: str) -> str:
    return reason.encode()[:_REASON_BYTES].decode(errors="ignore")


def _agreement(row: dict[str, Any]) -> Agreement:
    content, ballot, rejected = row["content"], row["ballot"], row["rejected"]
    return Agreement(
        content=None if content is None else Content(*content),
        ballot=None if ballot is None else Ballot(**dict(ballot, content=Content(*ballot["content"]))),
        ballots=row["ballots"],
        rejected=None if rejected is None else Rejection(**dict(rejected, content=Content(*rejected["content"]))),
    )


def _worker(row: dict[str, Any]) -> Worker:
    return Worker(
        pid=row["pid"],
        accepts=row["accepts"],
        was_tried=row["was_tried"],
        serving={name: Content(*one) for name, one in row["serving"].items()},
        votes={name: Vote(**one) for name, one in row["votes"].items()},
    )
