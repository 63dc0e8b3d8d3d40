"""The deliverer: one process per project that sends events to the webhooks of the settings.

A lock in the project's state folder keeps a second one away. A file beside it is touched while all webhooks are being
served, by which `noa status` tells that it is well. Old events are removed here too, once an hour.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from noa.atomic_write import translate_disk_errors, write_file
from noa.errors import ConflictError, InvalidInputError, ServiceError, StorageError
from noa_registry.database import Database
from noa_registry.events.delivery import Delivery
from noa_registry.events.heartbeat import WEBHOOKS_FOLDER, heartbeat_file
from noa_registry.events.http_post import load_client
from noa_registry.events.log import EventLog
from noa_registry.events.webhooks import Webhook, build_webhook
from noa_registry.identity import registry_id

if TYPE_CHECKING:
    from noa.settings import WebhookSettings

HEARTBEAT_EVERY_S = 1.0
_TRIM_EVERY_S = 3600.0


def build_webhooks(settings: Mapping[str, WebhookSettings]) -> list[Webhook]:
    """Return the configured webhooks.

    Raises:
        InvalidInputError: there is none.
        SettingsError: a pattern of kinds is unknown.
    """
    if not settings:
        raise InvalidInputError(
            "no webhook is configured", expected="a table [webhooks.NAME] with `url` and `secret` in `noa.toml`"
        )
    return [build_webhook(name, hook) for name, hook in sorted(settings.items())]


def deliver_events(
    database: Database,
    webhooks: Sequence[Webhook],
    *,
    state_dir: Path,
    keep: timedelta,
    stop: threading.Event,
    tell: Callable[[str], None],
) -> None:
    """Deliver events until `stop` is set. See `EventLog.deliver`."""
    folder = state_dir / WEBHOOKS_FOLDER
    with translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as exc:
            raise ConflictError(
                "events of this project are being delivered already",
                where=str(folder / "lock"),
                remedy="See it with: noa status; stop it with: noa down --only webhooks",
            ) from exc
    try:
        _serve(database, webhooks, heartbeat_file(state_dir), stop, tell, keep)
    finally:
        lock.release()


def _serve(
    database: Database,
    webhooks: Sequence[Webhook],
    heartbeat: Path,
    stop: threading.Event,
    tell: Callable[[str], None],
    keep: timedelta,
) -> None:
    load_client()
    with database.write() as connection:
        identity = registry_id(connection)
    failures: list[BaseException] = []

    def run(webhook: Webhook) -> None:
        try:
            Delivery(database, webhook, registry=identity, tell=tell).run(stop)
        except BaseException as exc:
            failures.append(exc)
            raise
        finally:
            stop.set()

    threads = [threading.Thread(target=run, args=(hook,), name=hook.consumer) for hook in webhooks]
    for thread in threads:
        thread.start()
    tell(f"delivering to {', '.join(hook.name for hook in webhooks)}")
    try:
        _keep_house(database, heartbeat, stop, tell, keep)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise ServiceError("the delivery of events ended by itself", received=repr(failures[0])) from failures[0]
    tell("stopped")


def _keep_house(
    database: Database, heartbeat: Path, stop: threading.Event, tell: Callable[[str], None], keep: timedelta
) -> None:
    trim_at = time.monotonic()
    while not stop.is_set():
        try:
            write_file(heartbeat, f"{time.time():.0f}\n")
            if time.monotonic() >= trim_at:
                trim_at = time.monotonic() + _TRIM_EVERY_S
                if removed := EventLog(database, keep=keep).trim():
                    tell(f"{removed} events older than {keep.days} days and read by all were removed")
        except StorageError as exc:
            tell(f"house-keeping is postponed: {exc}")
        stop.wait(HEARTBEAT_EVERY_S)
