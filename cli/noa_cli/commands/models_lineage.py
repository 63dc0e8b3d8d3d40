"""`noa models lineage`: where a version came from and where it went, as a tree, a picture or data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from rich.tree import Tree

    from noa_registry import LineageGraph
    from noa_registry.lineage.outline import OutlineItem

_STYLES = {
    "model": "bold",
    "version": "bold blue",
    "alias": "magenta",
    "dataset": "green",
    "job": "yellow",
    "run": "yellow",
    "generation": "cyan",
    "replica": "cyan",
}


def lineage(
    question: Annotated[
        str, typer.Argument(help="`name/number`, `name@alias`, `name`, a digest, or the id of a run or job.")
    ],
    upstream: Annotated[bool, typer.Option("--upstream", help="Only what it was made from.")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", help="Only what came of it.")] = False,
    depth: Annotated[int | None, typer.Option("--depth", min=1, help="Most steps away; all otherwise.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most versions; the others are counted.")] = 10,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture to this file.")] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show data, job, run, version, formats, aliases, endpoints and replicas, and what came from what."""
    direction = "both" if upstream == downstream else "upstream" if upstream else "downstream"
    with open_registry() as registry:
        graph = registry.lineage(question, direction=direction, depth=depth, limit=limit)
    if svg is not None:
        _write_svg(graph, svg, question)
    if as_json:
        console.print_json(graph.to_dict())
    elif mermaid:
        from noa_registry.lineage.mermaid import to_mermaid

        typer.echo(to_mermaid(graph), nl=False)
    elif svg is None:
        _print_tree(graph)


def _write_svg(graph: LineageGraph, path: Path, question: str) -> None:
    from noa.atomic_write import write_file
    from noa_registry.lineage.svg import to_svg

    write_file(path.absolute(), to_svg(graph, title=f"Lineage of {question}"))
    console.note(f"{path}: {console.count(len(graph.nodes), 'node')}, {console.count(len(graph.edges), 'edge')}")


def _print_tree(graph: LineageGraph) -> None:
    from rich.tree import Tree

    from noa_registry.lineage.outline import outline

    for item in outline(graph):
        tree = Tree(_line(item), guide_style="dim", highlight=False)
        _grow(tree, item)
        console.print_whole(tree)


def _grow(tree: Tree, item: OutlineItem) -> None:
    for child in item.children:
        _grow(tree.add(_line(child)), child)


def _line(item: OutlineItem):  # noqa: ANN202  # rich.text.Text, which is imported late
    from rich.text import Text

    from noa_registry.lineage.standing import standing

    if item.node is None:
        return Text(item.verb, style="dim")
    line = Text()
    if item.verb:
        line.append(f"{item.verb} ", style="dim")
    line.append(f"{item.node.kind} ", style="dim")
    became = standing(item.node)
    line.append(console.visible(item.node.label), style=_STYLES.get(item.node.kind, "") if became is None else "dim")
    if item.is_repeated:
        line.append("  (above)", style="dim")
        return line
    details = ", ".join(filter(None, (became, _details(item.node.facts))))
    if details:
        line.append(console.visible(f"  {details}"), style="dim")
    return line


def _details(facts: object) -> str:
    if not isinstance(facts, dict):
        return ""
    table: dict[str, object] = facts  # pyright: ignore[reportUnknownVariableType]  # facts of a node have string keys
    parts: list[str] = []
    for key, text in (
        ("equivalence", "equivalence {}"),
        ("bytes", "{:,} bytes"),
        ("recipe", "recipe {}"),
        ("backend", "on {}"),
        ("since", "since {:.10}"),
        ("by", "by {}"),
        ("reason", "({})"),
        ("format", "{}"),
        ("follows", "follows {}"),
        ("created_at", "registered {:.10}"),
        ("created_by", "by {}"),
    ):
        if key in table and not (key == "created_at" and "bytes" in table):  # a format is as old as its version
            parts.append(text.format(table[key]))
    return ", ".join(parts)
