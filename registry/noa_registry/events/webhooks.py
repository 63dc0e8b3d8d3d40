"""A webhook: which events go to which address, as what, and how the receiver knows that they are genuine.

The signature is an HMAC-SHA256 over `<timestamp>.<body>`. The receiver computes it with the shared secret, compares in
constant time, refuses old timestamps, and remembers event ids: an event may come twice.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, get_args

from noa.digests import canonical_json
from noa.errors import ServiceError, SettingsError
from noa_registry.database import to_text
from noa_registry.events.http_post import Answer, Request, post
from noa_registry.events.log import Event
from noa_registry.events.outbox import EventKind

if TYPE_CHECKING:
    from noa.settings import WebhookSettings

CONSUMER_PREFIX = "webhook:"
_USER_AGENT = "noa-webhooks/1"
_MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one request ended. `text` is for the log and the dead-letter list; `retry_after_s` is the receiver's wish."""

    delivered: bool
    text: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One configured receiver. `send` makes the request; tests of the schedule may take its place."""

    name: str
    settings: WebhookSettings
    kinds: frozenset[str]
    send: Callable[[Request], Answer] = post

    @property
    def consumer(self) -> str:
        """The name under which the event log remembers how far it is."""
        return f"{CONSUMER_PREFIX}{self.name}"

    def wants(self, event: Event) -> bool:
        """Tell whether an event is to be sent."""
        models = self.settings.models
        return event.kind in self.kinds and (not models or event.name in models)

    def deliver(self, event: Event, *, registry: str, attempt: int, timestamp: int) -> Attempt:
        """Send one event once."""
        body = event_body(event, registry)
        request = Request(
            url=self.settings.url,
            body=body,
            headers={
                "Content-Type": "application/json",
                "User-Agent": _USER_AGENT,
                "Noa-Event-Id": f"{registry}-{event.id}",
                "Noa-Event-Kind": event.kind,
                "Noa-Attempt": str(attempt),
                "Noa-Timestamp": str(timestamp),
                "Noa-Signature": sign_body(self.settings.secret.get_secret_value(), timestamp, body),
            },
            timeout_s=self.settings.timeout_s,
            allow_private=self.settings.allow_private,
            ca_file=self.settings.ca_file,
        )
        try:
            answer = self.send(request)
        except ServiceError as exc:
            return Attempt(delivered=False, text=str(exc))
        if 200 <= answer.status < 300:
            return Attempt(delivered=True, text=f"status {answer.status}")
        if 300 <= answer.status < 400:
            text = f"status {answer.status}: redirects are not followed; set the receiver's own address as `url`"
            return Attempt(delivered=False, text=text)
        text = f"status {answer.status}" + (f": {answer.excerpt}" if answer.excerpt else "")
        return Attempt(delivered=False, text=text, retry_after_s=answer.retry_after_s)

    def wait_s(self, attempts: int, *, chance: float, wish_s: float | None = None) -> float:
        """Return how long to wait after `attempts` failures: doubling, with jitter by `chance` (0 to 1), bounded.

        The receiver may wish for longer (`Retry-After`), up to the same bound.
        """
        doubled = self.settings.retry_base_s * 2.0 ** min(attempts - 1, _MOST_DOUBLINGS)
        longest = self.settings.retry_max_s
        return max(min(doubled, longest) * (0.5 + 0.5 * chance), min(wish_s or 0.0, longest))


def build_webhook(name: str, settings: WebhookSettings) -> Webhook:
    """Return a webhook with its patterns of kinds resolved.

    Raises:
        SettingsError: a pattern names no kind of event.
    """
    known: tuple[str, ...] = get_args(EventKind)
    kinds: set[str] = set() if settings.events else set(known)
    for pattern in settings.events:
        matching = {kind for kind in known if fnmatchcase(kind, pattern)}
        if not matching:
            raise SettingsError(
                f"`{pattern}` is no kind of event",
                where=f"webhooks.{name}.events",
                expected=", ".join(known),
                received=pattern,
            )
        kinds |= matching
    return Webhook(name=name, settings=settings, kinds=frozenset(kinds))


def event_body(event: Event, registry: str) -> bytes:
    """Return the JSON document that is sent."""
    return canonical_json(
        {
            "id": f"{registry}-{event.id}",
            "sequence": event.id,
            "kind": event.kind,
            "model": event.name,
            "created_at": to_text(event.created_at),
            "data": event.payload,
        }
    )


def sign_body(secret: str, timestamp: int, body: bytes) -> str:
    """Return the value of the `Noa-Signature` header."""
    return "sha256=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
