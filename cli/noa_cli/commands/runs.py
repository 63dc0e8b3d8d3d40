"""`noa runs`: what was tracked while training, as a list, one by one, side by side and as curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._negated_terms import TermsCommand
from noa_cli._options import JsonOption
from noa_cli._runs import open_project_runs
from noa_cli.commands.runs_plot import plot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from noa_registry.runs import MetricDifference, RunComparison, RunDetails, RunPage, RunSummary
    from noa_registry.runs.files import RunFile

_SHORT_ID = 12
_SHORT_TEXT = 60
_MOST_FILES = 200
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_TITLES = {"labels": "tags"}

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The beginning of the run's id, or its name.")]
RunsArgument = Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Beginnings of ids, or names.")]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("See what was tracked while training: noa's jobs, and what MLflow's own clients wrote.")
    add_command(group, list_runs, name="list", kind=TermsCommand)
    for function in (show, compare, plot):
        add_command(group, function)
    return group


def list_runs(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            help="Terms that must all hold, e.g. `model:digits backend:torch status:failed 'metric.accuracy>=0.98'`; "
            "put terms with < or > in quotes; `-` negates one. Nothing: every run."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most rows.")] = 50,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="The page after another: its `next_cursor`, with the same query.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="Show this metric instead of the one each run is judged by."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first or by `sort:metric.NAME`."""
    with open_project_runs() as book:
        page = book.page(" ".join(query or ()), limit=limit, cursor=cursor, metric=metric)
    if as_json:
        runs = [run.to_dict() for run in page.runs]
        console.print_json({"runs": runs, "next_cursor": page.next_cursor, "hint": page.hint})
    elif page.runs:
        _print_page(page)
    else:
        nothing = "No run matches." if query else "No run was tracked here yet."
        console.note(nothing if page.hint is None else f"{nothing} {page.hint}")


def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show all that a run holds: parameters, metrics, data, environment, commit, files."""
    with open_project_runs() as book:
        found = book.get(run)
    files, problem = _files(found.artifact_uri)
    if as_json:
        listed = [{"path": file.path, "size_bytes": file.size_bytes} for file in files]
        console.print_json({**found.to_dict(), "files": listed})
        return
    _print_details(found)
    if files:
        console.print_table(["file", "bytes"], [[file.path, file.size_bytes] for file in files])
        console.print_line(f"the files are in {found.artifact_uri}")
    if problem is not None:
        console.note(problem)


def compare(runs: RunsArgument, as_json: JsonOption = False) -> None:
    """Show runs side by side: what differs in what they were asked for and where they ran, and all metrics."""
    with open_project_runs() as book:
        comparison = book.compare(runs)
    if as_json:
        console.print_json(comparison.to_dict())
    else:
        _print_comparison(comparison)


def _print_page(page: RunPage) -> None:
    shows_experiment = len({run.experiment for run in page.runs}) > 1
    experiment = ["experiment"] if shows_experiment else []
    console.print_table(
        ["run", "name", *experiment, "backend", "status", "started", "duration", "best metric", "version"],
        [
            [
                run.run_id[:_SHORT_ID],
                f"{run.name}{' (deleted)' if run.is_deleted else ''}",
                *([run.experiment] if shows_experiment else []),
                run.backend,
                run.status,
                None if run.started_at is None else console.short_time(run.started_at),
                duration_text(run.duration_s),
                _best(run),
                ", ".join(run.versions) or None,
            ]
            for run in page.runs
        ],
    )
    if page.next_cursor is not None:
        console.note(f"There are more: the next page with --cursor {page.next_cursor}")


def _best(run: RunSummary) -> str | None:
    metric = run.metric
    if metric is None:
        return None
    return f"{metric.name} {metric.value:.4g}{'' if metric.is_best else ' (last)'}"


def _print_details(found: RunDetails) -> None:
    run = found.summary
    facts: list[list[object]] = [
        ["run", run.run_id],
        ["name", run.name],
        ["experiment", run.experiment],
        ["status", f"{run.status}{', deleted' if run.is_deleted else ''}"],
        ["started", _when(run)],
        ["duration", duration_text(run.duration_s)],
        ["best metric", _best(run)],
        ["versions", ", ".join(run.versions) or None],
        *[[key.replace("_", " "), value] for key, value in found.config.items()],
        *[[f"git {key}", value] for key, value in found.git.items()],
    ]
    console.print_table(["", "run"], [row for row in facts if row[1] is not None], wrapped=["run"])
    if found.metrics:
        console.print_table(
            ["metric", "last value", "step", "at"],
            [
                [one.key, _number(one.value), one.step, None if one.at is None else console.short_time(one.at)]
                for one in found.metrics
            ],
        )
    _print_pairs("param", found.params)
    for dataset in found.datasets:
        shapes = ", ".join(f"{key} {value}" for key, value in dataset.profile.items())
        console.print_line(f"data: {dataset.context or dataset.name}: {dataset.name} {dataset.digest} {shapes}")
    _print_pairs("environment", found.environment)
    _print_pairs("tag", found.labels)


def _print_pairs(title: str, values: Mapping[str, str]) -> None:
    if values:
        console.print_table([title, "value"], [[key, value] for key, value in values.items()], wrapped=["value"])


def _when(run: RunSummary) -> str | None:
    if run.started_at is None:
        return None
    by = f" by {run.by}" if run.by else ""
    return f"{console.short_time(run.started_at)}{by}"


def _files(location: str) -> tuple[list[RunFile], str | None]:
    """Return the files of a run, and what hinders it where they cannot be listed."""
    from noa.errors import NoaError
    from noa_cli._invocation import current
    from noa_registry.runs.files import RunFiles

    files = RunFiles(current().settings().registry)
    try:
        return list(files.list(location, most=_MOST_FILES)), None
    except NoaError as exc:
        return [], f"The files of the run are not listed: {exc}"
    finally:
        files.close()


def _print_comparison(comparison: RunComparison) -> None:
    ids = [run.run_id[:_SHORT_ID] for run in comparison.runs]
    console.print_table(
        ["", *ids],
        [
            ["name", *[run.name for run in comparison.runs]],
            ["status", *[run.status for run in comparison.runs]],
            ["duration", *[duration_text(run.duration_s) for run in comparison.runs]],
            ["versions", *[", ".join(run.versions) or None for run in comparison.runs]],
        ],
    )
    if comparison.metrics:
        columns = [*ids, "difference"] if len(ids) == 2 else ids
        console.print_table(["metric", *columns], [_metric_row(row) for row in comparison.metrics])
    if len(ids) > 2 and comparison.metrics:
        console.print_line(f"in brackets: the difference from {ids[0]}")
    same: list[str] = []
    for name, rows in comparison.sections.items():
        title = _TITLES.get(name, name)
        if rows:
            console.print_table([title, *ids], [[row.key, *map(_short, row.values)] for row in rows])
        else:
            same.append(title)
    if same:
        console.print_line(f"the same: {', '.join(same)}")


def _metric_row(row: MetricDifference) -> list[object]:
    if len(row.values) == 2:
        return [row.key, *map(_number, row.values), _signed(row.differences[1])]
    return [row.key, *_with_differences(row)]


def _with_differences(row: MetricDifference) -> Iterator[str | None]:
    for index, (value, difference) in enumerate(zip(row.values, row.differences, strict=True)):
        shown = _number(value)
        yield shown if index == 0 or difference is None else f"{shown} ({_signed(difference)})"


def _short(value: str | None) -> str | None:
    if value is not None and value.startswith("sha256:"):
        return console.short_digest(value)
    return value if value is None or len(value) <= _SHORT_TEXT else f"{value[: _SHORT_TEXT - 1]}…"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _signed(value: float | None) -> str | None:
    if value is None or not math.isfinite(value):
        return None
    return f"{value:+.4g}" if value else "0"


def duration_text(seconds: float | None) -> str | None:
    """Return e.g. `2.3 s`, `4 min 05 s`, `3 h 12 min` or `2 d 4 h`."""
    if seconds is None or seconds < 0:
        return None
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"
