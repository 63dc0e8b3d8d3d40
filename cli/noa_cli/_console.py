"""What people see: tables and lines on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


_UNBROKEN = 24


class Step(Protocol):
    """A running step; calling it with text tells how far it is."""

    def __call__(self, text: str) -> None:
        """Show `text` beside the step."""
        ...


def out() -> Console:
    """Return the console of standard output. Data goes here, unwrapped when it is piped."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Return the console of standard error: progress, warnings, errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_json(value: object) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows under headings; piped output has one row a line."""
    from rich import box
    from rich.table import Table

    console = out()
    if not sys.stdout.isatty():
        console.width = 10_000
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
    widths = [max([len(column), *(len(str(row[index])) for row in rows)]) for index, column in enumerate(columns)]
    room = console.width - 2 * (len(columns) - 1) - sum(min(width, _UNBROKEN) for width in widths)
    for column, width in zip(columns, widths, strict=True):
        # Numbers, names and digests stay on one line while there is room for them.
        table.add_column(column, overflow="fold", no_wrap=console.width > 1000 or (width <= _UNBROKEN and room >= 0))
    for row in rows:
        table.add_row(*[_escape(value) for value in row])
    console.print(table)


def print_line(text: str, style: str | None = None) -> None:
    """Print one line of text to standard output, as it is."""
    from rich.text import Text

    out().print(Text(text, style=style or ""))


def note(text: str, style: str = "dim") -> None:
    """Print one line to standard error."""
    from rich.text import Text

    err().print(Text(text, style=style))


@contextmanager
def step(title: str) -> Generator[Step]:
    """Show one step: a spinner with the elapsed time on a terminal, a line at start and end elsewhere."""
    started = time.monotonic()
    console = err()
    if console.is_terminal:
        from rich.status import Status
        from rich.text import Text

        with Status(Text(title), console=console, spinner="dots") as status:
            yield lambda text: status.update(Text(f"{title}  {text} ({time.monotonic() - started:.0f} s)"))
    else:
        last = [started]

        def tell(text: str) -> None:
            if time.monotonic() - last[0] >= 5:  # a log wants a line now and then, not every step
                last[0] = time.monotonic()
                note(f"{title}: {text}")

        yield tell
    note(f"{title}  done in {time.monotonic() - started:.1f} s")


def short_digest(digest: str) -> str:
    """Return the first 12 digits of a digest, enough for people."""
    return digest.removeprefix("sha256:")[:12]


def short_time(moment: datetime) -> str:
    """Return local time to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _escape(value: object) -> str:
    from rich.markup import escape

    return escape("-" if value is None else str(value))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)  # pyright: ignore[reportUnknownVariableType]  # json walks the items itself
    return str(value)
