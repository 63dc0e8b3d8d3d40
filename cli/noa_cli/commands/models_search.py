"""`noa models search`: versions by name, tag, metric, digest, format, dataset, alias or age."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa_registry import SearchHit

_MOST_METRICS = 4


def search(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            help="Terms that must all hold, e.g. `digits tag.team=vision param.lr:0.01 'metric.accuracy>=0.98'`; "
            "put terms with < or > in quotes; `-` negates one: `-is:live`. Nothing: every version."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most rows.")] = 50,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="The page after another: its `next_cursor`, with the same query.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find versions, newest first or by `sort:metric.NAME`."""
    text = " ".join(query or ())
    with open_registry() as registry:
        page = registry.search(text, limit=limit, cursor=cursor)
    for hit in page.hits:
        if hit.problem is not None:
            console.note(hit.problem, "red")
    if as_json:
        hits = [_hit_to_dict(hit) for hit in page.hits]
        console.print_json({"hits": hits, "next_cursor": page.next_cursor, "hint": page.hint})
        return
    if not page.hits:
        console.note("No version matches." if page.hint is None else f"No version matches. {page.hint}")
        return
    metrics = list(dict.fromkeys(name for hit in page.hits for name in hit.metrics))[:_MOST_METRICS]
    console.print_table(
        ["version", "aliases", "formats", *metrics, "tags", "digest", "created", "by"],
        [
            [
                f"{hit.reference}{' (trash)' if hit.is_trashed else ''}",
                ", ".join(hit.aliases) or None,
                ", ".join(hit.formats),
                *[f"{hit.metrics[name]:.4g}" if name in hit.metrics else None for name in metrics],
                ", ".join(f"{key}={value}" for key, value in hit.tags.items() if not key.startswith("noa.")) or None,
                console.short_digest(hit.digest),
                None if hit.created_at is None else console.short_time(hit.created_at),
                hit.created_by,
            ]
            for hit in page.hits
        ],
    )
    if page.next_cursor is not None:
        console.note(f"There are more: the next page with --cursor {page.next_cursor}")


def _hit_to_dict(hit: SearchHit) -> dict[str, object]:
    return {
        "reference": hit.reference,
        "name": hit.name,
        "number": hit.number,
        "digest": hit.digest,
        "native": hit.native,
        "formats": list(hit.formats),
        "aliases": list(hit.aliases),
        "tags": dict(hit.tags),
        "metrics": dict(hit.metrics),
        "measured_on": dict(hit.measured_on),
        "dataset_digest": hit.dataset_digest,
        "created_at": hit.created_at,
        "created_by": hit.created_by,
        "is_trashed": hit.is_trashed,
        "problem": hit.problem,
    }
