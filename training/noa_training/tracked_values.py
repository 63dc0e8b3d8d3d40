"""The numbers of a job's events that its run tracks: as they happen, and read again from the log of a killed job.

The log of events is written at once, the database every half second; so a run's database may lack the end of what its
log holds, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from noa.errors import InvalidInputError
from noa_training.events import Epoch, JobEvent, Step, parse_event

_BLOCK_BYTES: Final = 1 << 20
_LONGEST_LINE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TrackedValues:
    """Values of one moment by their keys. `timestamp_ms` counts from the Unix epoch."""

    step: int
    timestamp_ms: int
    values: Mapping[str, float]


def values_of(event: JobEvent) -> TrackedValues | None:
    """Return what a run tracks of an event, None if it is nothing."""
    match event:
        case Step():
            values = {
                "train.loss": event.loss,
                "learning_rate": event.learning_rate,
                "samples_per_s": event.samples_per_s,
            }
        case Epoch():
            values = {f"validation.{name}": value for name, value in event.metrics.items()}
            # Those of the best epoch so far: the last value of each is what the model will be judged by.
            values |= {f"best.{name}": value for name, value in event.metrics.items()} if event.is_best else {}
        case _:
            return None
    return TrackedValues(event.step, int(event.at * 1000), values)


def read_missing(log: Path, is_known: Callable[[TrackedValues], bool]) -> Iterator[list[TrackedValues]]:
    """Give, oldest first and in blocks, what a log holds from about the first moment on that is not known.

    What is written is always the beginning of the log, so it is looked for from the end on, block by block; what is
    known of the first block is given again.
    """
    try:
        size = log.stat().st_size
    except OSError:
        return
    if not size:
        return
    with log.open("rb") as file:
        blocks: list[tuple[int, int]] = []
        end = size
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            blocks.append((start, end))
            first = next(_read(file, start, end), None)
            if first is not None and is_known(first):
                break
            end = start
        for start, end in reversed(blocks):
            found = list(_read(file, start, end))
            if found:
                yield found


def first_moment(log: Path) -> float | None:
    """Return when the first event of a log happened, in seconds since the Unix epoch; None if there is none."""
    try:
        with log.open("rb") as file:
            return parse_event(file.readline(_LONGEST_LINE)).at
    except (OSError, InvalidInputError):
        return None


def _read(file: BinaryIO, start: int, end: int) -> Iterator[TrackedValues]:
    """Give what the lines hold that begin at `start` or later and before `end`."""
    file.seek(max(0, start - 1))
    if start > 0:
        file.readline(_LONGEST_LINE)  # the rest of a line that belongs to the block before, or its end alone
    while file.tell() < end:
        line = file.readline(_LONGEST_LINE)
        if not line:
            return
        try:
            found = values_of(parse_event(line))
        except InvalidInputError:  # cut off by a full disk
            continue
        if found is not None and found.values:
            yield found
