"""The book of runs: everything that may be asked about runs, on one database. It only reads."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from noa.errors import NotFoundError
from noa_registry.artifacts import runs_uri
from noa_registry.bootstrap import open_database
from noa_registry.database import Database, now
from noa_registry.database_url import parse_database_url
from noa_registry.runs.comparison import RunComparison, check_runs, compare_runs
from noa_registry.runs.curves import MOST_RUNS, Axis, Curve, load_curves
from noa_registry.runs.details import RunDetails, find_run, load_details
from noa_registry.runs.grammar import parse_run_query
from noa_registry.runs.listing import ProcessCheck, RunPage, list_runs

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection

    from noa.settings import RegistrySettings


def _never_gone(_job: str, _attempt: int) -> bool:
    return False


class RunBook:
    """Runs of one database, those that MLflow's clients wrote too. Made by `open_runs`; close it, or use `with`.

    Each answer is of one state of the database, while jobs write. `is_gone` tells of a job and its attempt whether its
    process is gone; its run is then `interrupted`, whatever is recorded.
    """

    def __init__(self, database: Database | None, *, is_gone: ProcessCheck = _never_gone) -> None:
        self._database = database
        self._is_gone = is_gone

    def page(
        self, query: str = "", *, limit: int = 50, cursor: str | None = None, metric: str | None = None
    ) -> RunPage:
        """Return a page of the runs that a query finds (`grammar.py`), newest first or by `sort:metric.NAME`.

        `metric` is shown of each run; None: the first that the query names, else the one that the job's best epoch is
        chosen by. `cursor` is the `next_cursor` of the page before, with the same query.

        Raises:
            InvalidInputError: the query, the cursor or the limit cannot be read.
        """
        if self._database is None:
            parse_run_query(query, now=now())
            return RunPage(runs=(), next_cursor=None)
        with self._database.snapshot() as connection:
            return list_runs(connection, query, limit=limit, cursor=cursor, metric=metric, is_gone=self._is_gone)

    def get(self, run: str) -> RunDetails:
        """Return the run whose id begins with `run`, or that has this name.

        Raises:
            NotFoundError: there is none.
            InvalidInputError: there are several; the message names them.
        """
        with self._snapshot(run) as connection:
            return load_details(connection, find_run(connection, run), is_gone=self._is_gone)

    def compare(self, runs: Sequence[str]) -> RunComparison:
        """Put runs side by side; see `get` for how each is named.

        Raises:
            NotFoundError, InvalidInputError: as `get`; or it is one run, too many, or one of them twice.
        """
        with self._snapshot(*runs) as connection:
            ids = [find_run(connection, run) for run in runs]
            return compare_runs([load_details(connection, run, is_gone=self._is_gone) for run in ids])

    def curves(self, runs: Sequence[str], metric: str, *, axis: Axis = "step") -> list[Curve]:
        """Return the curves of a metric; see `get` for how each run is named, and `load_curves`.

        Raises:
            NotFoundError: there is no such run, or none of them has the metric.
            InvalidInputError: as `get`; or there are too many curves, or one over epochs that no run counts.
        """
        with self._snapshot(*runs) as connection:
            ids = [find_run(connection, run) for run in runs]
            check_runs(ids, least=1, most=MOST_RUNS)
            return load_curves(connection, ids, metric, axis=axis)

    def close(self) -> None:
        """Close the connections to the database."""
        if self._database is not None:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _snapshot(self, *runs: str) -> Generator[Connection]:
        if self._database is None:
            raise NotFoundError(
                f"no run `{next(iter(runs), '')[:80]}`: nothing was tracked here yet",
                remedy="Train something: noa train RECIPE",
            )
        with self._database.snapshot() as connection:
            yield connection


def open_runs(settings: RegistrySettings, *, is_gone: ProcessCheck = _never_gone) -> RunBook:
    """Open the runs of a registry. One that is not there yet stays unmade and has none.

    Raises:
        SettingsError, DependencyMissingError, StorageError: as `Registry.open`.
    """
    parsed = parse_database_url(settings.database_url)
    if parsed.dialect == "sqlite" and not parsed.file.exists():
        folder = parsed.file.parent
        if folder.is_dir() or not folder.exists():  # opening it says what is wrong otherwise
            return RunBook(None, is_gone=is_gone)
    database = open_database(
        settings.database_url, artifact_root=runs_uri(settings), lock_timeout_s=settings.lock_timeout_s
    )
    return RunBook(database, is_gone=is_gone)
