"""`noa events`: what happened in the registry, who has read it, and its delivery to webhooks."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from noa.stop_signals import stop_on_signals
from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa_registry import Event, EventPage, Registry

_FOLLOW_EVERY_S = 0.5
_PAGE = 500

ConsumerArgument = Annotated[str, typer.Argument(help="The consumer's name; of a webhook: webhook:NAME.")]
WebhookOption = Annotated[str | None, typer.Option("--webhook", help="Only of this webhook.")]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Read what happened, see who has read how far, and deliver it to webhooks.")
    add_command(group, list_events, name="list")
    for function in (consumers, deliver):
        add_command(group, function)
    add_command(group, dead_letters, name="dead-letters")
    for function in (seek, forget, trim):
        add_command(group, function)
    return group


def list_events(
    model: Annotated[str | None, typer.Option("--model", help="Only events of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most events; the newest.")] = 50,
    after: Annotated[int | None, typer.Option("--after", help="The oldest events after this number instead.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List events, oldest first. With --follow, --json prints one JSON object a line."""
    from noa.references import check_name

    name = None if model is None else check_name(model)
    with open_registry(about=[] if name is None else [name], makes=follow) as registry:
        if name is not None:
            registry.numbers(name)  # a name that was mistyped has no events either
        page = registry.events.page(after=after, name=name, limit=limit)
        if not follow:
            _print_page(page, as_json)
            return
        with stop_on_signals() as stop:
            _print_lines(page, as_json)
            while not stop.wait(_FOLLOW_EVERY_S):
                last = page.last_id
                while (page := registry.events.page(after=last, name=name, limit=_PAGE)).last_id > last:
                    _print_lines(page, as_json)
                    last = page.last_id


def consumers(as_json: JsonOption = False) -> None:
    """List who reads events and remembers how far; what the slowest has not read is kept for it."""
    with open_registry() as registry:
        found = registry.events.consumers()
    if as_json:
        console.print_json(
            [{"consumer": c.consumer, "last_id": c.last_id, "lag": c.lag, "updated_at": c.updated_at} for c in found]
        )
        return
    if not found:
        console.note("Nobody has committed an event yet, and no webhook was delivered to.")
        return
    console.print_table(
        ["consumer", "done up to", "behind by", "since"],
        [[c.consumer, c.last_id, c.lag, console.short_time(c.updated_at)] for c in found],
    )


def deliver() -> None:
    """Deliver events to the webhooks of noa.toml, in the foreground, until Ctrl-C; `noa up` does so as a service."""
    settings = current().settings()
    with open_registry(settings, makes=True) as registry, stop_on_signals() as stop:
        registry.events.deliver(settings.webhooks, state_dir=settings.state_dir, stop=stop, tell=console.note)


def dead_letters(
    webhook: WebhookOption = None,
    event: Annotated[int | None, typer.Option("--event", help="Only this event.")] = None,
    redeliver: Annotated[bool, typer.Option("--redeliver", help="Have them sent again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List events that a webhook did not take after all attempts, or have them sent again."""
    consumer = None if webhook is None else f"webhook:{webhook}"
    with open_registry() as registry:
        if consumer is not None:
            _require_consumer(registry, consumer)
        if redeliver:
            count = registry.events.dead_letters.redeliver(consumer=consumer, event=event)
            if as_json:
                console.print_json({"redelivered": count})
            else:
                console.print_line(f"{console.count(count, 'event')} will be sent again by the deliverer")
            return
        found = [
            (letter, happened)
            for letter, happened in registry.events.dead_letters.list(consumer=consumer)
            if event in (None, letter.event_id)
        ]
    if as_json:
        console.print_json(
            [
                {
                    "consumer": letter.consumer,
                    "event": letter.event_id,
                    "kind": None if happened is None else happened.kind,
                    "model": None if happened is None else happened.name,
                    "attempts": letter.attempts,
                    "error": letter.error,
                    "created_at": letter.created_at,
                    "next_attempt_at": letter.next_attempt_at,
                }
                for letter, happened in found
            ]
        )
        return
    if not found:
        console.note("No event was given up.")
        return
    console.print_table(
        ["consumer", "event", "kind", "model", "attempts", "last error", "since", "again at"],
        [
            [
                letter.consumer,
                letter.event_id,
                None if happened is None else happened.kind,
                None if happened is None else happened.name,
                letter.attempts,
                letter.error,
                console.short_time(letter.created_at),
                None if letter.next_attempt_at is None else console.short_time(letter.next_attempt_at),
            ]
            for letter, happened in found
        ],
    )


def seek(
    consumer: ConsumerArgument,
    to: Annotated[int, typer.Argument(help="Go on after this event; 0: with the oldest that is kept.")],
    new: Annotated[bool, typer.Option("--new", help="Make a consumer of this name if there is none.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a consumer or webhook read again from an event on, or skip to it."""
    with open_registry(makes=new and not dry_run) as registry:
        if not new:
            make = current().command_line("events", "seek", consumer, str(to), "--new")
            _require_consumer(registry, consumer, remedy=f"List them with `noa events consumers`, or make it: {make}")
        before = registry.events.seek(consumer, to, dry_run=dry_run)
    if as_json:
        console.print_json({"consumer": consumer, "last_id": to, "before": before, "dry_run": dry_run})
    else:
        console.print_line(_seek_text(consumer, to, before, dry_run=dry_run))


def _seek_text(consumer: str, to: int, before: int, *, dry_run: bool) -> str:
    """Return where a consumer goes on, and what that means for what it reads."""
    if to == before:
        return f"{consumer} {'would stay' if dry_run else 'stays'} after event {to}: nothing changes"
    goes_on = "would go on" if dry_run else "goes on"
    begins = f"after event {to}" if to else "with the oldest event that is kept"
    if to < before:
        return f"{consumer} {goes_on} {begins}: events up to {before}, which it was done with, come again"
    skipped = f"event {to} is" if to == before + 1 else f"events {before + 1} to {to} are"
    return f"{consumer} {goes_on} {begins}: {skipped} skipped"


def forget(consumer: ConsumerArgument, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Remove a consumer that will not come back: its place, its dead letters, and its hold on old events."""
    from noa.errors import NotFoundError

    with open_registry() as registry:
        found = [one for one in registry.events.consumers() if one.consumer == consumer]
        if not dry_run:
            registry.events.forget(consumer)
        elif not found:
            raise NotFoundError(f"no consumer `{consumer}`", remedy="List them with: noa events consumers")
    if as_json:
        console.print_json({"consumer": consumer, "forgotten": not dry_run})
    else:
        console.print_line(f"{'would forget' if dry_run else 'forgot'} {consumer}")


def trim(
    keep_days: Annotated[
        float | None,
        typer.Option(
            "--keep-days", min=0, help="Keep those that are younger; the setting events_keep_days by default."
        ),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old events that every consumer has read; the deliverer does so by itself."""
    keep = None if keep_days is None else timedelta(days=keep_days)
    with open_registry() as registry:
        count = registry.events.trim(keep=keep, dry_run=dry_run)
    if as_json:
        console.print_json({"removed": 0 if dry_run else count, "removable": count, "dry_run": dry_run})
    else:
        console.print_line(f"{'would remove' if dry_run else 'removed'} {console.count(count, 'event')}")


def _print_page(page: EventPage, as_json: bool) -> None:
    _name_problems(page)
    if as_json:
        console.print_json([_event_to_dict(event) for event in page.events])
        return
    if not page.events and not page.problems:
        console.note("Nothing has happened yet.")
        return
    console.print_table(
        ["#", "when", "kind", "model", "what"],
        [[e.id, console.short_time(e.created_at), e.kind, e.name, _summary(e)] for e in page.events],
    )


def _name_problems(page: EventPage) -> None:
    """Say which events cannot be read, and what helps, beside those that can."""
    for problem in page.problems:
        console.note(str(problem), "red")


def _print_lines(page: EventPage, as_json: bool) -> None:
    _name_problems(page)
    for event in page.events:
        if as_json:
            console.print_json_line(_event_to_dict(event))
        else:
            text = f"{event.id}  {console.short_time(event.created_at)}  {event.kind}  {event.name}  {_summary(event)}"
            sys.stdout.write(console.visible(text) + "\n")
    sys.stdout.flush()


def _require_consumer(
    registry: Registry, consumer: str, *, remedy: str = "List them with: noa events consumers"
) -> None:
    """Refuse a consumer that never committed an event and is no webhook of noa.toml: it is a mistyped one.

    Raises:
        NotFoundError: it is none.
    """
    from noa.errors import NotFoundError

    hooks = [f"webhook:{name}" for name in current().settings().webhooks]
    known = list(dict.fromkeys([*(one.consumer for one in registry.events.consumers()), *hooks]))
    if consumer not in known:
        raise NotFoundError(
            f"no consumer `{consumer}`",
            expected=", ".join(f"`{one}`" for one in known) or "one that committed an event, or a webhook of noa.toml",
            received=f"`{consumer}`",
            remedy=remedy,
        )


def _event_to_dict(event: Event) -> dict[str, object]:
    return {
        "id": event.id,
        "kind": event.kind,
        "model": event.name,
        "created_at": event.created_at.isoformat(),
        "data": dict(event.payload),
    }


def _summary(event: Event) -> str:
    """Return the facts of an event that fit on a line, digests shortened."""
    parts: list[str] = []
    for key, value in event.payload.items():
        if isinstance(value, str) and value.startswith("sha256:"):
            parts.append(f"{key}={console.short_digest(value)}")
        elif isinstance(value, (str, int, float)) and key != "hash":
            parts.append(f"{key}={value}")
    return ", ".join(parts)
