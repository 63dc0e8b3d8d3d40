"""Lineage: one graph from the data to the replicas, bounded, drawn without trusting any text in it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font, LoadFlags

from noa.errors import InvalidInputError, NotFoundError
from noa_registry import LineageEdge, LineageGraph, LineageNode, ModelVersion, Registry
from noa_registry.lineage.graph import NodeKind
from noa_registry.lineage.labels import EDGE_FONT, NAME_FONTS, fit_name, place_labels
from noa_registry.lineage.layout import NODE_HEIGHT, NODE_WIDTH, lay_out
from noa_registry.lineage.mermaid import escape_label, to_mermaid
from noa_registry.lineage.outline import OutlineItem, outline
from noa_registry.lineage.standing import standing
from noa_registry.lineage.svg import to_svg
from noa_registry.lineage.text_width import text_width

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def served(registry: Registry, formats: Any) -> ModelVersion:
    """`digits/1`, made by a job in a run, promoted and served by one replica."""
    tags = {"noa.job_id": "digits-torch-1", "noa.recipe": "recipe.py", "noa.backend": "torch"}
    version = registry.register(formats.draft(run_id="r" * 32, tags=tags), actor="ada")
    registry.promote("digits", 1, reason="first", actor="ada")
    generation = registry.endpoints.announce("live", "digits", 1, alias="champion", format="onnx")
    registry.endpoints.acknowledge("live", "host:1", generation, lease_s=60)
    return version


def edges(graph: LineageGraph) -> set[tuple[str, str, str]]:
    return {(edge.source.partition(":")[0], edge.kind, edge.target.partition(":")[0]) for edge in graph.edges}


def kinds(graph: LineageGraph) -> list[str]:
    return sorted(node.kind for node in graph.nodes.values())


def test_the_graph_goes_from_the_data_to_the_replica(registry: Registry, served: ModelVersion) -> None:
    graph = registry.lineage("digits/1")
    assert edges(graph) == {
        ("dataset", "read by", "job"),
        ("commit", "code of", "job"),
        ("job", "tracked as", "run"),
        ("run", "registered as", "version"),
        ("version", "sealed as", "format"),
        ("format", "converted to", "format"),
        ("version", "held by", "alias"),
        ("format", "served by", "generation"),
        ("alias", "followed by", "generation"),
        ("generation", "acknowledged by", "replica"),
    }
    assert graph.focus == ("version:digits/1",)
    assert graph.nodes["format:digits/1:onnx"].facts["equivalence"] == "passed"
    assert graph.nodes["job:digits-torch-1"].facts["recipe"] == "recipe.py"
    assert graph.nodes["alias:digits@champion"].facts["reason"] == "first"
    assert graph.nodes["replica:live:host:1"].label == "host:1"


@pytest.mark.parametrize(
    "question", ["digits@champion", "digits", "dataset", "digest", "format digest", "r" * 32, "digits-torch-1"]
)
def test_a_question_may_name_any_end_of_the_graph(
    registry: Registry, served: ModelVersion, formats: Any, question: str
) -> None:
    asked = {
        "dataset": served.dataset_digest,
        "digest": served.digest,
        "format digest": formats.digest("onnx"),
    }.get(question, question)
    graph = registry.lineage(asked)
    assert {"dataset", "job", "run", "version", "format", "alias", "generation", "replica"} <= set(kinds(graph))


def test_directions_and_depth_bound_what_is_shown(registry: Registry, served: ModelVersion) -> None:
    up = registry.lineage("digits/1", direction="upstream")
    assert kinds(up) == ["commit", "dataset", "job", "run", "version"]
    down = registry.lineage("digits/1", direction="downstream", depth=1)
    assert kinds(down) == ["alias", "format", "version"]
    both = registry.lineage("digits/1", depth=1)
    assert kinds(both) == ["alias", "format", "run", "version"]
    assert kinds(registry.lineage(served.dataset_digest, direction="upstream")) == ["dataset"]
    assert [node.kind for node in both.upstream("version:digits/1")] == ["run"]
    assert {node.kind for node in both.downstream("version:digits/1")} == {"format", "alias"}


def test_without_job_and_run_the_version_hangs_on_its_data(registry: Registry, version: ModelVersion) -> None:
    assert edges(registry.lineage("digits/1", direction="upstream")) == {
        ("dataset", "used by", "version"),
        ("commit", "code of", "version"),
    }


def test_what_is_unknown_is_said_so(registry: Registry, version: ModelVersion) -> None:
    for question, message in (
        ("nobody", "nothing is known of `nobody`"),
        ("digits/9", "no version 9"),
        ("digits@nobody", "no alias `nobody`"),
        ("sha256:" + "0" * 64, "no dataset, version or format has this digest"),
    ):
        with pytest.raises(NotFoundError, match=message):
            registry.lineage(question)
    with pytest.raises(InvalidInputError, match="bounds"):
        registry.lineage("digits", limit=0)


def test_a_deleted_version_is_shown_as_deleted(registry: Registry, version: ModelVersion) -> None:
    registry.retention.delete("digits", 1, reason="r", actor="ada")
    node = registry.lineage("digits/1").nodes["version:digits/1"]
    assert "in_trash_since" in node.facts
    assert "in the trash" in to_svg(registry.lineage("digits"), title="t")


def test_a_purged_version_is_shown_as_purged_and_not_as_one_in_the_trash(
    registry: Registry, version: ModelVersion
) -> None:
    registry.retention.delete("digits", 1, reason="r", actor="ada", grace=timedelta())
    registry.retention.apply(registry.retention.plan_gc(), actor="ada")
    graph = registry.lineage("digits")
    for node in [*graph.of_kind("version"), *graph.of_kind("format")]:
        assert "in_trash_since" not in node.facts
        assert str(standing(node)).startswith("purged 20")
    for drawing in (to_svg(graph, title="t"), to_mermaid(graph)):
        assert "purged 20" in drawing
        assert "in the trash" not in drawing


def test_what_an_endpoint_answered_with_before_is_marked_as_ended(
    registry: Registry, served: ModelVersion, formats: Any, execute: Callable[..., Any]
) -> None:
    second = registry.register(formats.draft(), actor="ada")
    assert [standing(node) for node in registry.lineage("digits").of_kind("generation")] == [None]
    generation = registry.endpoints.announce("live", "digits", second.number, alias="champion", format="onnx")

    def became() -> dict[str, str | None]:
        return {node.label: standing(node) for node in registry.lineage("digits").of_kind("generation")}

    assert became() == {"live #1": None, "live #2": "not served now"}  # the replica still answers with the old one
    registry.endpoints.acknowledge("live", "host:1", generation, lease_s=60)
    ended = became()
    assert str(ended["live #1"]).startswith("ended 20")
    assert ended["live #2"] is None
    graph = registry.lineage("digits")
    assert 'stroke-dasharray="5 3"' in to_svg(graph, title="t")
    assert to_mermaid(graph).count(":::past") == 1
    execute("UPDATE noa_replicas SET expires_at = '2020-01-01T00:00:00'")
    assert became()["live #2"] == "not served now"


def test_a_replica_whose_lease_ended_is_not_shown(
    registry: Registry, served: ModelVersion, execute: Callable[..., Any]
) -> None:
    execute("UPDATE noa_replicas SET expires_at = '2020-01-01T00:00:00'")
    assert "replica" not in kinds(registry.lineage("digits/1"))


def test_of_many_versions_those_in_use_and_the_newest_are_shown_and_the_rest_counted(
    registry: Registry, formats: Any, served: ModelVersion
) -> None:
    for _ in range(6):
        registry.register(formats.draft(), actor="ada")
    graph = registry.lineage("digits", limit=3)
    assert [node.label for node in graph.of_kind("version")] == ["digits/7", "digits/6", "digits/1"]
    assert (graph.hidden, graph.of_kind("more")[0].label) == (4, "and 4 more versions")


def test_ten_thousand_versions_are_folded_in_moderate_time(
    registry: Registry, served: ModelVersion, execute: Callable[..., Any]
) -> None:
    columns = (
        "name, number, uid, digest, native, signature, wrapper, dataset_digest, run_id, git_commit, environment, "
        "params, tags, description, created_at, created_by"
    )
    copied = columns.replace("number, uid", "n.i, 'uid' || CAST(n.i AS VARCHAR)")
    execute(
        f"INSERT INTO noa_versions ({columns}) WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE "
        f"i < 10001) SELECT {copied} FROM noa_versions, n WHERE number = 1"
    )
    started = time.process_time()
    graph = registry.lineage("digits")
    assert time.process_time() - started < 2.0
    assert (len(graph.of_kind("version")), graph.of_kind("more")[0].label) == (10, "and 9,991 more versions")
    assert len(graph.nodes) < 100


# Drawing.


def test_the_outline_writes_every_node_out_once(registry: Registry, served: ModelVersion) -> None:
    (root,) = outline(registry.lineage("digits/1"))
    assert root.node is not None
    assert root.children[0].verb == "made from"

    def walk(item: OutlineItem) -> list[OutlineItem]:
        return [item, *(below for child in item.children for below in walk(child))]

    written = [item.node.id for item in walk(root) if item.node is not None and not item.is_repeated]
    assert sorted(written) == sorted(registry.lineage("digits/1").nodes)


def hostile(text: str) -> LineageGraph:
    nodes = {
        "a": LineageNode(id="a", kind="version", label=text, facts={"reason": text}),
        "b": LineageNode(id="b", kind="alias", label=text, facts={"by": text}),
    }
    return LineageGraph(focus=("a",), nodes=nodes, edges=(LineageEdge(source="a", target="b", kind=text),))


@given(st.text(max_size=60))
def test_no_text_becomes_syntax_of_a_picture(text: str) -> None:
    attack = f'{text}"><script>alert(1)</script>&<!--'
    document = ElementTree.fromstring(to_svg(hostile(attack), title=attack))
    assert {element.tag.removeprefix(SVG) for element in document.iter()} <= {
        "svg",
        "title",
        "defs",
        "marker",
        "path",
        "rect",
        "text",
        "g",
    }
    assert not any(name.startswith("on") for element in document.iter() for name in element.attrib)


@given(st.text(max_size=200))
def test_no_text_becomes_syntax_of_mermaid(text: str) -> None:
    escaped = escape_label(f'{text}"]\n%%{{init}}%% <b>#quot;')
    assert not set(escaped) & set('"<>[]{}|\n`%&')
    lines = to_mermaid(hostile(text + '"\nclick a "javascript:x"')).splitlines()
    assert len(lines) == 1 + 2 + 1 + 2 + 1
    assert not any(line.strip().startswith("click") for line in lines)


@given(st.data())
def test_nodes_of_any_graph_never_touch_and_edges_lead_to_the_right(data: Any) -> None:
    count = data.draw(st.integers(1, 14))
    pairs = data.draw(st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=30))
    nodes = {str(n): LineageNode(id=str(n), kind="version", label=str(n)) for n in range(count)}
    links = tuple(LineageEdge(source=str(a), target=str(b), kind="x") for a, b in sorted(pairs) if a < b)
    layout = lay_out(LineageGraph(focus=("0",), nodes=nodes, edges=links))
    corners = list(layout.nodes.values())
    for index, (x, y) in enumerate(corners):
        assert 0 <= x <= layout.width - NODE_WIDTH
        assert 0 <= y <= layout.height - NODE_HEIGHT
        for other_x, other_y in corners[index + 1 :]:
            assert abs(x - other_x) >= NODE_WIDTH or abs(y - other_y) >= NODE_HEIGHT
    for edge, points in layout.edges:
        assert points[0][0] < points[-1][0]
        assert layout.nodes[edge.source][0] < layout.nodes[edge.target][0]


@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from(["used by", "acknowledged by", "x" * 40]))
def test_the_words_at_edges_cover_neither_each_other_nor_a_node(versions: int, sources: int, word: str) -> None:
    nodes = [LineageNode(id=f"s{n}", kind="dataset", label=str(n)) for n in range(sources)]
    nodes += [LineageNode(id=f"v{n}", kind="version", label=str(n)) for n in range(versions)]
    links = tuple(
        LineageEdge(source=f"s{a}", target=f"v{b}", kind=word) for a in range(sources) for b in range(versions)
    )
    layout = lay_out(LineageGraph(focus=("v0",), nodes={node.id: node for node in nodes}, edges=links))
    half = 0.5 * EDGE_FONT * len(word) / 2  # narrower than is reserved, so nothing that is seen touches
    words = [(x - half, y - EDGE_FONT / 2, x + half, y) for x, y in filter(None, place_labels(layout))]
    boxes = [(x, y, x + NODE_WIDTH, y + NODE_HEIGHT) for x, y in layout.nodes.values()]
    for index, one in enumerate(words):
        for other in [*words[index + 1 :], *boxes]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    if len(word) < 20:  # wider than the gap between the columns it may be left out
        assert words


@pytest.mark.parametrize(
    "name",
    ["0123456789abcdef" * 2, "W" * 30, "digits-torch-20261129-" + "7" * 40, "模型" * 20, "m" * 128 + "/1"],
    ids=["run id", "wide letters", "job id", "wide script", "long name"],
)
@pytest.mark.parametrize("backend", ["torch", "a-backend-with-a-name-that-is-far-too-long"])
def test_every_word_of_a_picture_stays_inside_of_its_box(name: str, backend: str) -> None:
    kinds: list[NodeKind] = ["run", "job", "generation", "version"]
    nodes = {
        kind: LineageNode(id=kind, kind=kind, label=name, facts={"backend": backend, "ended_at": "2026-11-29"})
        for kind in kinds
    }
    links = tuple(LineageEdge(source=a, target=b, kind=name) for a, b in itertools.pairwise(kinds))
    picture = ElementTree.fromstring(to_svg(LineageGraph(focus=("run",), nodes=nodes, edges=links), title=name))
    for group in picture.findall(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        words = group.findall(f"{SVG}text")
        title = group.find(f"{SVG}title")
        assert box is not None
        assert title is not None
        assert name in str(title.text)  # what was cut is in the tooltip
        left, right = float(box.attrib["x"]), float(box.attrib["x"]) + float(box.attrib["width"])
        kind, note, label = words
        assert left < float(label.attrib["x"])
        assert float(label.attrib["x"]) + text_width(str(label.text), float(label.attrib["font-size"])) < right
        end_of_kind = float(kind.attrib["x"]) + 1.1 * text_width(str(kind.text), float(kind.attrib["font-size"]))
        assert float(note.attrib["x"]) < right
        assert float(note.attrib["x"]) - text_width(str(note.text), float(note.attrib["font-size"])) > end_of_kind


def test_widths_are_those_of_the_font_that_is_measured() -> None:
    font = FT2Font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    for code in range(32, 127):
        advance = font.load_char(code, flags=LoadFlags.NO_SCALE).horiAdvance / font.units_per_EM
        assert advance <= text_width(chr(code), 1.0) <= advance + 0.011, chr(code)


def test_long_names_become_smaller_and_then_lose_their_middle() -> None:
    assert fit_name("digits/3") == ("digits/3", NAME_FONTS[0])
    assert fit_name("digits-torch-20261129-120") == ("digits-torch-20261129-120", NAME_FONTS[1])
    name, _ = fit_name("host-1.example.internal:3000-12345")
    assert name.startswith("host-1.")
    assert name.endswith("-12345")
    assert text_width(name, NAME_FONTS[1]) <= NODE_WIDTH - 22


def test_the_picture_of_a_real_graph_is_whole(registry: Registry, served: ModelVersion, tmp_path: Path) -> None:
    graph = registry.lineage("digits")
    document = ElementTree.fromstring(to_svg(graph, title="Lineage of digits"))
    assert len(document.findall(f"{SVG}g")) == len(graph.nodes)
    assert len(document.findall(f"{SVG}path")) == len(graph.edges)
    assert to_svg(graph, title="x") == to_svg(graph, title="x")
    assert to_mermaid(graph).count(":::") == len(graph.nodes)
