"""The run of a job in the database, written by one thread: opened, begun or taken up again, filled, ended.

`write` may be called again after any error: what is there already is left alone, what is missing is written then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from noa.errors import NoaError, NotFoundError
from noa_training.secret_masking import mask_value, own_secrets
from noa_training.tracked_values import TrackedValues, first_moment, read_missing

if TYPE_CHECKING:
    from noa.settings import RegistrySettings
    from noa_registry.mlflow_runs import MetricRow
    from noa_registry.mlflow_tracking import Tracker
    from noa_registry.runs.datasets import DatasetInput
    from noa_training.system_metrics import SystemSampler

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
SAMPLE_EVERY_S: Final = 10.0
_RETRY_REST_S: Final = 10.0
_MOST_WAITING: Final = 200_000  # moments; the log has them too
_MOST_FILE_BYTES: Final = 16 << 20
_NUMBERS: Final = (b'{"kind": "step"', b'{"kind": "epoch"')  # most lines of a log, and no texts


def _no_files() -> dict[str, bytes]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What the run is started with. `run_id`: the run of an earlier part of the same job, to be continued.

    `datasets` are the data that it uses, `files` (by path) are kept with it.
    """

    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    run_id: str | None = None
    datasets: tuple[DatasetInput, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=_no_files)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What takes time to find out about the place where a job runs, and belongs to its run."""

    tags: Mapping[str, str]
    files: Mapping[str, bytes]


class RunWriter:
    """See the module. `on_run` gets the run's id, `warn` what went wrong with something that is not essential."""

    def __init__(
        self,
        registry: RegistrySettings,
        *,
        project: str,
        on_run: Callable[[str], None],
        warn: Callable[[str], None],
        gather: Callable[[], RunFacts] | None,
        log: Path | None,
    ) -> None:
        self._registry = registry
        self._project = project
        self._on_run = on_run
        self._warn = warn
        self._gather = gather
        self._log = log
        self._facts = RunFacts(tags={}, files={})
        self._tracker: Tracker | None = None
        self._sampler: SystemSampler | None = None
        self._next_sample = 0.0
        self._waiting: deque[TrackedValues] = deque()
        self._must_fill = True
        self._rest: list[tuple[str, Callable[[Tracker, str], None]]] = []
        self._rest_again = 0.0
        self._complaints: set[str] = set()
        self.run_id: str | None = None

    def take(self, values: Iterable[TrackedValues]) -> None:
        """Keep values until they are written; of too many the log alone is kept, from which they come back."""
        self._waiting.extend(values)
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.clear()
            self._must_fill = True

    def write(self, info: RunInfo | None, *, status: RunStatus | None, files: Mapping[str, Path]) -> None:
        """Open the tracker; once there is `info`, write the run up to now; with a `status`, end it with its `files`.

        Raises:
            NoaError: the database refused, or the run is gone or was deleted.
        """
        if self._tracker is None:
            self._tracker = self._open()
            self._look_around()
        if info is None:
            return
        tracker, run_id = self._tracker, self._start(self._tracker, info)
        if self._must_fill:
            self._fill(tracker, run_id)
            self._must_fill = False
        self._sample(is_last=status is not None)
        self._flush(tracker, run_id)
        if status is not None:
            self._rest += [(path, _kept(path, file)) for path, file in files.items()]
            self._rest_again = 0.0
        self._write_rest(tracker, run_id)
        if status is not None:
            tracker.finish(run_id, status)

    def forget_run(self) -> None:
        """Give up a run that is gone: the next `write` starts another one."""
        self.run_id = None
        self._must_fill = True

    def close(self) -> None:
        """Close what is open."""
        if self._sampler is not None:
            self._sampler.close()
        if self._tracker is not None:
            self._tracker.close()

    def _open(self) -> Tracker:
        from noa_registry.mlflow_tracking import open_tracker

        return open_tracker(self._registry, self._project)

    def _look_around(self) -> None:
        """Find out where the job runs; a run without that is still a run."""
        try:
            if self._gather is not None:
                self._facts = self._gather()
            if self._log is not None:
                from noa_training.system_metrics import SystemSampler

                self._sampler = SystemSampler(self._log.parent)
        except Exception as exc:  # noqa: BLE001  # whatever git, the drivers or the system answer
            self._complain("the environment of the run", exc)

    def _start(self, tracker: Tracker, info: RunInfo) -> str:
        if self.run_id is not None:
            return self.run_id
        if info.run_id is not None:
            tracker.resume_run(info.run_id)
            run_id = info.run_id
        else:
            run_id = tracker.start_run(info.name, dict(info.params), {**self._facts.tags, **info.tags})
        self.run_id = run_id
        datasets, kept = info.datasets, {**self._facts.files, **info.files}
        self._rest = [("the data of the run", lambda tracker, run: tracker.log_datasets(run, datasets))]
        self._rest += [(path, _written(path, data)) for path, data in kept.items()]
        self._on_run(run_id)
        return run_id

    def _fill(self, tracker: Tracker, run_id: str) -> None:
        """Write what the log of an earlier part of the job holds and the run does not."""
        if self._log is None:
            return
        for block in read_missing(self._log, lambda first: tracker.has_metric(run_id, _rows([first])[0])):
            tracker.log_metrics(run_id, _rows(block))

    def _sample(self, *, is_last: bool) -> None:
        now = time.monotonic()
        if self._sampler is None or (now < self._next_sample and not is_last):
            return
        self._next_sample = now + SAMPLE_EVERY_S
        moment = time.time()
        begun = None if self._log is None else first_moment(self._log)
        seconds = 0 if begun is None else max(0, int(moment - begun))
        try:
            self._waiting.append(TrackedValues(seconds, int(moment * 1000), self._sampler.sample()))
        except Exception as exc:  # noqa: BLE001  # whatever the system answers, the job's own values go on
            self._complain("the metrics of the machine", exc)

    def _flush(self, tracker: Tracker, run_id: str) -> None:
        if self._waiting:
            count = len(self._waiting)
            tracker.log_metrics(run_id, _rows(self._waiting))
            for _ in range(count):  # after the write: values of a failed flush are tried again
                self._waiting.popleft()

    def _write_rest(self, tracker: Tracker, run_id: str) -> None:
        """Write what is not essential; what fails is tried again later, and once more at the end."""
        if not self._rest or time.monotonic() < self._rest_again:
            return
        failed: list[tuple[str, Callable[[Tracker, str], None]]] = []
        for what, do in self._rest:
            try:
                do(tracker, run_id)
            except NotFoundError:
                raise
            except Exception as exc:  # noqa: BLE001  # a disk or store that refuses a file takes the values perhaps
                failed.append((what, do))
                self._complain(what, exc)
        self._rest = failed
        self._rest_again = time.monotonic() + _RETRY_REST_S

    def _complain(self, what: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, NoaError) else f"{type(error).__name__}: {error}"
        if reason not in self._complaints:
            self._complaints.add(reason)
            self._warn(f"{what} is not recorded: {reason}")


def without_run(info: RunInfo) -> RunInfo:
    """Return what a new run is started with in the place of one that is gone."""
    return replace(info, run_id=None)


def _rows(values: Iterable[TrackedValues]) -> list[MetricRow]:
    from noa_registry.mlflow_runs import MetricRow

    return [
        MetricRow(key=key, value=value, step=one.step, timestamp_ms=one.timestamp_ms)
        for one in values
        for key, value in one.values.items()
    ]


def _written(path: str, data: bytes) -> Callable[[Tracker, str], None]:
    """Return what writes a file that a run has from its start; a continued job's stays as it is."""
    return lambda tracker, run_id: tracker.log_file(run_id, path, data, replace=False)


def _kept(path: str, file: Path) -> Callable[[Tracker, str], None]:
    """Return what writes a file of the job's folder as it is at the end, if it is there."""

    def write(tracker: Tracker, run_id: str) -> None:
        with suppress(FileNotFoundError):
            tracker.log_file(run_id, path, _without_secrets(_tail(file)))

    return write


def _without_secrets(data: bytes) -> bytes:
    """Return a text as it may be kept: a traceback or an event may repeat what the user's code said of a secret."""
    secrets = own_secrets()
    return b"\n".join(
        line if line.startswith(_NUMBERS) else mask_value(line.decode(errors="replace"), secrets=secrets).encode()
        for line in data.split(b"\n")
    )


def _tail(file: Path) -> bytes:
    """Return a file, of a very long one its last lines."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - _MOST_FILE_BYTES))
        if size > _MOST_FILE_BYTES:
            opened.readline()
        return opened.read()
