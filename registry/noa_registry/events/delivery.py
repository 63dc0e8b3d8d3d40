"""Delivery to one webhook: which event is next, when, and what is remembered of it.

Events of one model go one after the other, in order; the next one waits until this one was taken or given up. Models do
not wait for each other. Only one process delivers (see `deliverer`), so its own memory of the queues is right. What was
done is in the database before the next event of a model is sent: after `kill -9` only the requests that were under way
come twice.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event as Signal

from noa.errors import StorageError
from noa_registry.database import Database, now
from noa_registry.events.delivery_state import (
    Cursor,
    DeadLetter,
    load_cursors,
    load_offset,
    load_redeliveries,
    put_dead_letter,
    remove_dead_letter,
    store_progress,
)
from noa_registry.events.log import Event, load_events, newest_id
from noa_registry.events.webhooks import Attempt, Webhook

_PAGE = 500
_QUEUED_PER_MODEL = 50
_SENDERS = 4
_POLL_S = 0.25
_DATABASE_PAUSE_S = 2.0
_REDELIVERIES = 200


@dataclass(slots=True)
class _Line:
    """The waiting events of one model, oldest first. `cut`: there are more in the database behind the last one."""

    cursor: Cursor
    waiting: deque[Event] = field(default_factory=deque[Event])
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One request: an event, the attempts before it, and the dead letter if it is sent again."""

    event: Event
    attempts: int
    letter: DeadLetter | None = None


class Delivery:
    """Delivers to one webhook until it is told to stop. `tell` takes lines for the log."""

    def __init__(self, database: Database, webhook: Webhook, *, registry: str, tell: Callable[[str], None]) -> None:
        self._database = database
        self._webhook = webhook
        self._registry = registry
        self._tell = tell
        self._lines: dict[str, _Line] = {}
        self._scanned = 0
        self._stored = 0
        self._chance = random.Random()

    def run(self, stop: Signal) -> None:
        """Deliver until `stop` is set; requests that are under way then are waited for and remembered."""
        self._resume_when_possible(stop)
        under_way: dict[Future[Attempt], _Job] = {}
        with ThreadPoolExecutor(_SENDERS, thread_name_prefix=self._webhook.consumer) as senders:
            while under_way or not stop.is_set():
                try:
                    if not stop.is_set():
                        for job in self._due(under_way):
                            under_way[senders.submit(self._send, job)] = job
                except StorageError as exc:
                    self._tell(f"{self._webhook.consumer}: {exc}; trying again")
                    stop.wait(_DATABASE_PAUSE_S)
                if not under_way:
                    stop.wait(_POLL_S)
                    continue
                for future in wait(under_way, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
                    self._settle_surely(under_way.pop(future), future.result(), stop)

    def _resume_when_possible(self, stop: Signal) -> None:
        while not stop.is_set():
            try:
                self._resume()
            except StorageError as exc:
                self._tell(f"{self._webhook.consumer}: {exc}; trying again")
                stop.wait(_DATABASE_PAUSE_S)
            else:
                return

    def _resume(self) -> None:
        """Go on where the database says; a new webhook begins with what happens from now on."""
        consumer = self._webhook.consumer
        with self._database.write() as connection:
            offset = load_offset(connection, consumer)
            if offset is None:
                offset = newest_id(connection)
                store_progress(connection, consumer, done=offset, changed={})
            cursors = load_cursors(connection, consumer)
        self._scanned = self._stored = offset
        self._lines = {name: _Line(cursor=cursor) for name, cursor in cursors.items()}

    def _due(self, under_way: dict[Future[Attempt], _Job]) -> list[_Job]:
        """Return the jobs to begin now: at most one per model, and no more than there are senders."""
        if self._was_moved():
            if under_way:
                return []
            self._resume()
        self._read_on()
        busy = {job.event.name for job in under_way.values()}
        moment = now()
        jobs = [job for job in self._redeliveries(moment) if job.event.name not in busy]
        busy |= {job.event.name for job in jobs}
        for name, line in self._lines.items():
            wait_until = line.cursor.next_attempt_at
            if name not in busy and line.waiting and (wait_until is None or wait_until <= moment):
                jobs.append(_Job(event=line.waiting[0], attempts=line.cursor.attempts))
        jobs.sort(key=lambda job: job.event.id)
        return jobs[: _SENDERS - len(under_way)]

    def _read_on(self) -> None:
        """Take new events into the lines, and step over those that nobody wants."""
        with self._database.read() as connection:
            for name, line in self._lines.items():
                if line.cut and not line.waiting:
                    page = load_events(connection, after=line.cursor.last_id, name=name, limit=_PAGE)
                    known = [event for event in page if event.id <= self._scanned]
                    wanted = [event for event in known if self._webhook.wants(event)]
                    line.waiting.extend(wanted[:_QUEUED_PER_MODEL])
                    line.cut = len(known) == _PAGE or len(wanted) > _QUEUED_PER_MODEL
                    if not wanted and known:
                        line.cursor = replace(line.cursor, last_id=known[-1].id)
            events = load_events(connection, after=self._scanned, limit=_PAGE)
        for event in events:
            if self._webhook.wants(event):
                line = self._lines.setdefault(event.name, _Line(cursor=Cursor(last_id=self._stored)))
                if event.id > line.cursor.last_id:
                    line.cut = line.cut or len(line.waiting) >= _QUEUED_PER_MODEL
                    if not line.cut:
                        line.waiting.append(event)
            self._scanned = event.id
        if self._done() > self._stored:
            self._store({})

    def _was_moved(self) -> bool:
        """Tell whether somebody has set the webhook's place (`noa events seek`) since we last wrote it."""
        with self._database.read() as connection:
            return load_offset(connection, self._webhook.consumer) != self._stored

    def _redeliveries(self, moment: datetime) -> list[_Job]:
        """Return the first event of each model that is to be sent again and whose time has come."""
        with self._database.read() as connection:
            found = load_redeliveries(connection, self._webhook.consumer, limit=_REDELIVERIES)
        first: dict[str, _Job] = {}
        for letter, event in found:
            first.setdefault(event.name, _Job(event=event, attempts=letter.attempts, letter=letter))
        return [job for job in first.values() if job.letter is not None and job.letter.is_due(moment)]

    def _send(self, job: _Job) -> Attempt:
        try:
            return self._webhook.deliver(
                job.event, registry=self._registry, attempt=job.attempts + 1, timestamp=int(time.time())
            )
        except Exception as exc:  # noqa: BLE001  # a mistake in noa costs this attempt, not the other models' events
            place = traceback.extract_tb(exc.__traceback__)[-1]  # its text may hold the secret part of the address
            text = f"could not be sent: unexpected {type(exc).__name__} at {Path(place.filename).name}:{place.lineno}"
            return Attempt(delivered=False, text=text)

    def _settle_surely(self, job: _Job, attempt: Attempt, stop: Signal) -> None:
        """Remember how an attempt ended. What cannot be stored would be forgotten, so this goes on until it can.

        Once `stop` is set one more try must do: the event is then sent again later, as after `kill -9`.
        """
        while True:
            is_last = stop.is_set()
            try:
                self._settle(job, attempt)
            except StorageError as exc:
                told = f"{self._webhook.consumer}: {exc}"
                if is_last:
                    self._tell(f"{told}; event {job.event.id} is sent again after the next start")
                    return
                self._tell(f"{told}; trying again")
                stop.wait(_DATABASE_PAUSE_S)
            else:
                return

    def _settle(self, job: _Job, attempt: Attempt) -> None:
        attempts = job.attempts + 1
        gives_up = not attempt.delivered and attempts >= self._webhook.settings.max_attempts
        waits_s = self._webhook.wait_s(attempts, chance=self._chance.random(), wish_s=attempt.retry_after_s)
        again = now() + timedelta(seconds=waits_s)
        if job.letter is not None:
            self._settle_letter(job, attempt, attempts, None if gives_up else again)
        else:
            self._settle_event(job.event, attempt, attempts, gives_up, again)
        what = f"{self._webhook.consumer}: event {job.event.id} {job.event.kind} of {job.event.name}"
        if attempt.delivered:
            self._tell(f"{what} delivered ({attempt.text})")
        elif gives_up:
            self._tell(f"{what} given up after {attempts} attempts, see `noa events dead-letters`: {attempt.text}")
        else:
            self._tell(f"{what} failed (attempt {attempts}, next in {waits_s:.1f} s): {attempt.text}")

    def _settle_letter(self, job: _Job, attempt: Attempt, attempts: int, again: datetime | None) -> None:
        consumer = self._webhook.consumer
        with self._database.write() as connection:
            if attempt.delivered:
                remove_dead_letter(connection, consumer, job.event.id)
            else:
                put_dead_letter(
                    connection, consumer, job.event.id, attempts=attempts, error=attempt.text, next_attempt_at=again
                )

    def _settle_event(self, event: Event, attempt: Attempt, attempts: int, gives_up: bool, again: datetime) -> None:
        line = self._lines[event.name]
        before, was_cut = line.cursor, line.cut
        if attempt.delivered or gives_up:
            line.cursor = Cursor(last_id=event.id)
            line.waiting.popleft()
        else:
            line.cursor = replace(line.cursor, attempts=attempts, next_attempt_at=again, error=attempt.text)
        try:
            dead = (event, attempts, attempt.text) if gives_up else None
            self._store({event.name: line.cursor}, dead=dead)
        except StorageError:
            line.cursor, line.cut = before, was_cut
            if not line.waiting or line.waiting[0] is not event:
                line.waiting.appendleft(event)
            raise

    def _store(self, changed: dict[str, Cursor], *, dead: tuple[Event, int, str] | None = None) -> None:
        done = self._done()
        with self._database.write() as connection:
            if dead is not None:
                event, attempts, error = dead
                put_dead_letter(connection, self._webhook.consumer, event.id, attempts=attempts, error=error)
            if load_offset(connection, self._webhook.consumer) != self._stored:
                return  # somebody has moved it, and that counts: `_due` goes on from there
            store_progress(connection, self._webhook.consumer, done=done, changed=changed)
        self._stored = done
        finished = [name for name, line in self._lines.items() if not line.waiting and not line.cut]
        for name in finished:
            if self._lines[name].cursor.last_id <= done:
                del self._lines[name]

    def _done(self) -> int:
        """Return the number up to which there is nothing left to do for any model."""
        heads = [
            line.waiting[0].id if line.waiting else line.cursor.last_id + 1
            for line in self._lines.values()
            if line.waiting or line.cut
        ]
        return min([*(head - 1 for head in heads), self._scanned])
