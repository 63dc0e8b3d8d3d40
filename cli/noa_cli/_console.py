"""What people see: tables and lines on standard output, progress and errors on standard error.

Reasons, names and messages are by others: what could steer a terminal in them is made visible here, see `visible`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, tzinfo
from functools import partial
from typing import TYPE_CHECKING

from noa.digests import short_digest as short_digest
from noa_cli._column_widths import column_widths

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


_BESIDE = 2  # blanks per column: between two of them, and at the edges
_LINE_EVERY_S = 5.0
_SILENT_S = 2.0
_WAITING_LINE_EVERY_S = 10.0
_NO_LIMIT = 1_000_000
# Controls, marks that turn the direction of writing, lone surrogates, and what some terminals take for a new line.
_STEERING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"  # scripts and emoji need them, and they move nothing


class Step:
    """A running step; calling it with text tells how far it is, `end` says how it ended if not simply done."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.ending = "done"

    def __call__(self, text: str) -> None:
        """Show `text` beside the step; empty text changes nothing."""
        if text:
            self._show(text)

    def end(self, text: str) -> None:
        """Set the word of the closing line."""
        self.ending = text


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
    _write_json(partial(json.dumps, value, indent=2, default=_plain, allow_nan=False))


def print_json_line(value: object) -> None:
    """Write one line of JSON to standard output."""
    _write_json(partial(json.dumps, value, default=str))


def _write_json(dump: Callable[..., str]) -> None:
    text = dump(ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8", "strict")
    except UnicodeEncodeError:  # half of a surrogate pair, or a letter that this output does not know
        text = dump(ensure_ascii=True)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    wrapped: Collection[str] = (),
) -> None:
    """Print rows under headings, each on one line when piped without COLUMNS. Programs read `--json` instead.

    `wrapped` are headings of long text of ours: it is wrapped there too, between words.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=None if title is None else _escape(title),
        show_header=any(columns),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    shown = [["-" if value is None else visible(str(value)) for value in row] for row in rows]
    room = max(out().width - _BESIDE * len(columns), 1) if has_width() else None
    cells = [[column, *(row[index] for row in shown)] for index, column in enumerate(columns)]
    for column, width in zip(columns, column_widths(cells, room, wrapped=[c in wrapped for c in columns]), strict=True):
        table.add_column(column, overflow="fold", width=width)
    for row in shown:
        table.add_row(*map(_escape, row))
    print_whole(table)


def print_whole(drawing: RenderableType) -> None:
    """Print a table or tree: folded to the width of a terminal or to COLUMNS, and as wide as it is where there is
    neither. What is piped ends without blanks that fill a line."""
    console = out()
    if sys.stdout.isatty():
        console.print(drawing)
        return
    if not has_width():  # rich takes 80 columns for a pipe, and cuts or folds at them
        unlimited = console.options.update(max_width=_NO_LIMIT)
        console.width = max(console.width, console.measure(drawing, options=unlimited).maximum)
    with console.capture() as captured:
        console.print(drawing, soft_wrap=not has_width())
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip(" ") + "\n")
    sys.stdout.flush()


def print_line(text: str, style: str | None = None) -> None:
    """Print one line of text to standard output, without markup."""
    from rich.text import Text

    out().print(Text(visible(text), style=style or ""))


def note(text: str, style: str = "dim") -> None:
    """Print one line to standard error."""
    from rich.text import Text

    with suppress(OSError):  # a full disk under standard error must not end the work that is told of
        err().print(Text(visible(text), style=style))


def visible(text: str) -> str:
    """Return one line in which everything is shown that would steer a terminal, e.g. `\\x1b` for an escape.

    Line breaks are shown too: a text of others must not look like a line or a row of ours.
    """
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def has_width() -> bool:
    """Tell whether what is printed has a width to keep: that of a terminal, or the one that COLUMNS says."""
    return sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()


def fits(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Tell whether a table of these rows keeps each on one line of what is printed to."""
    cells = [[str(row[index] or "-") for row in (columns, *rows)] for index in range(len(columns))]
    return not has_width() or sum(column_widths(cells, None)) + _BESIDE * len(columns) <= out().width


@contextmanager
def step(title: str) -> Generator[Step]:
    """Show one step: a spinner with the elapsed time on a terminal, a line at start and end elsewhere."""
    started = time.monotonic()
    console = err()
    if console.is_terminal:
        from rich.status import Status
        from rich.text import Text

        with Status(Text(visible(title)), console=console, spinner="dots") as status:
            shown = Step(lambda text: status.update(_one_line(title, text, time.monotonic() - started, console.width)))
            yield shown
    else:
        last = [started]

        def tell(text: str) -> None:
            if time.monotonic() - last[0] >= _LINE_EVERY_S:  # a log wants a line now and then, not every step
                last[0] = time.monotonic()
                note(f"{title}: {text}")

        shown = Step(tell)
        yield shown
    note(f"{title}  {shown.ending} in {time.monotonic() - started:.1f} s")


@contextmanager
def patience(title: str) -> Generator[Step]:
    """Show nothing for two seconds, then what is waited for: a spinner on a terminal, lines elsewhere."""
    started, console = time.monotonic(), err()
    texts, is_done = [""], threading.Event()

    def line() -> Text:
        return _one_line(title, texts[-1], time.monotonic() - started, console.width)

    def show() -> None:
        if is_done.wait(_SILENT_S):
            return
        if not console.is_terminal:
            note(line().plain)
            while not is_done.wait(_WAITING_LINE_EVERY_S):
                note(line().plain)
            return
        from rich.status import Status

        with Status(line(), console=console, spinner="dots") as status:
            while not is_done.wait(1.0):
                status.update(line())

    shower = threading.Thread(target=show, name="patience", daemon=True)
    shower.start()
    try:
        yield Step(texts.append)
    finally:
        is_done.set()
        shower.join()


def _one_line(title: str, text: str, seconds: float, width: int) -> Text:
    from rich.text import Text

    line = Text(visible(f"{title}  {seconds:.0f} s  {text}"))
    line.truncate(max(width - 4, 20), overflow="ellipsis")
    return line


def count(number: int, noun: str) -> str:
    """Return e.g. `1 version` or `1,200 versions`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_time(moment: datetime, zone: tzinfo | None = None) -> str:
    """Return the time to the second in a zone (None: the local one), with the zone's name."""
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def _escape(value: object) -> str:
    from rich.markup import escape

    return escape("-" if value is None else visible(str(value)))


def _shown(character: str) -> str:
    if unicodedata.category(character) in _STEERING and character not in _JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)  # pyright: ignore[reportUnknownVariableType]  # json walks the items itself
    return str(value)
