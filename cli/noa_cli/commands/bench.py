"""`noa bench`: a load test of a running endpoint, with a table and a plot of its latencies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption
from noa_cli.commands.predict import find_server, key_for, read_inputs, remedy_without_answer, tls_for

if TYPE_CHECKING:
    from noa_serving.load_test import LoadResult

_MOST_CONNECTIONS = 1024


def bench(
    endpoint: Annotated[str, typer.Argument(help="An endpoint by name.")],
    source: Annotated[
        str | None, typer.Option("--input", "-i", help="A file as for `noa predict` (default: random numbers).")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="The server (default: this project's, if it runs).")] = None,
    connections: Annotated[
        str, typer.Option("--connections", "-c", help="How many at once, one run for each number.")
    ] = "1,4,16,64",
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, help="Length of each run.")] = 3.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items in one request, without --input.")] = 1,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the latencies as a PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send the same request over and over, and tell how many are answered and how soon."""
    import asyncio

    from noa_serving.load_test import plot_latencies

    counts = _parse_connections(connections)
    results = asyncio.run(_measure(endpoint, source, url=url, counts=counts, seconds=seconds, batch=batch))
    if plot is not None:
        plot_latencies(results, plot, title=f"{endpoint}, {seconds:g} s per run")
    rows = [_row(one) for one in results]
    if as_json:
        console.print_json({"endpoint": endpoint, "runs": rows, "plot": None if plot is None else str(plot)})
        return
    names = ("connections", "requests/s", "p50 ms", "p90 ms", "p99 ms", "refused", "failed")
    console.print_table(names, [[_cell(value) for value in row.values()] for row in rows])
    if plot is not None:
        console.print_line(f"latencies: {plot}")


async def _measure(
    endpoint: str, source: str | None, *, url: str | None, counts: list[int], seconds: float, batch: int
) -> list[LoadResult]:
    from noa_serving import AsyncClient, NoAnswerError
    from noa_serving.load_test import example_inputs, run_load

    settings = current().load().settings
    address = url or find_server(settings, endpoint)
    key, tls = key_for(settings, url, address), tls_for(settings, url)
    async with AsyncClient(address, api_key=key, max_connections=max(counts), tls=tls) as client:
        try:
            specs = await client.inputs(endpoint)
            inputs = example_inputs(specs, batch=batch, seed=0) if source is None else read_inputs(source, specs)
            return await run_load(client, endpoint, inputs, connections=counts, seconds=seconds)
        except NoAnswerError as exc:
            exc.remedy = remedy_without_answer(exc, url)
            raise


def _parse_connections(text: str) -> list[int]:
    from noa.errors import InvalidInputError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= _MOST_CONNECTIONS for part in parts):
        raise InvalidInputError(
            "`--connections` is no list of numbers",
            expected=f"numbers from 1 to {_MOST_CONNECTIONS}, such as 1,8,64",
            received=text,
        )
    return [int(part) for part in parts]


def _row(one: LoadResult) -> dict[str, float | int]:
    return {
        "connections": one.connections,
        "requests_per_s": round(one.rate, 1),
        **{f"p{percent}_ms": round(one.percentile_ms(percent), 3) for percent in (50, 90, 99)},
        "refused": sum(count for status, count in one.statuses.items() if status not in (0, 200)),
        "failed": one.statuses.get(0, 0),
    }


def _cell(value: float | int) -> str:
    return f"{value:,}"
