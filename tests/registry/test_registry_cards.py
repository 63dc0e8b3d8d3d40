"""A model card says what is recorded and what is not, and nothing that anybody wrote becomes markup in it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noa_registry import CalibrationEvidence, Evidence, Registry, ReliabilityBin
from noa_registry.cards.document import Bullets, Document, Section, Table, Text
from noa_registry.cards.markdown import to_markdown
from noa_registry.cards.page import to_html

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

GOLDEN = Path(__file__).parent / "golden" / "model_card.md"
HOSTILE = (
    "<script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "![x](http://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "<http://evil.example>",
    "http://evil.example and www.evil.example and a@evil.example",
    "`code` ``` more ``` | a | b |",
    "# heading\n\n- list\n\n1. item\n\n> quote\n\n---\n",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "\x00\x07\u202e right to left \u2028",
    "{{7*7}} ${7*7} $x$",
)
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "h1",
    "h2",
    "p",
    "nav",
    "a",
    "section",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "wbr",
    "div",
    "ul",
    "li",
    "pre",
    "code",
    "figure",
    "figcaption",
    "svg",
    "path",
    "rect",
    "circle",
    "text",
    "g",
    "defs",
    "marker",
}


class Reader(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def registered(registry: Registry, formats: Formats) -> Registry:
    """`digits/1`, with metrics per slice, calibration, tags, an alias and a gate's verdict."""
    bins = (
        ReliabilityBin(lower=0.0, upper=0.5, rows=10, confidence=0.4, accuracy=0.3),
        ReliabilityBin(lower=0.5, upper=1.0, rows=30, confidence=0.9, accuracy=0.8),
    )
    onnx = formats.digest("onnx")
    calibration = CalibrationEvidence(
        subject="onnx",
        digest=onnx,
        dataset_digest="sha256:" + "d" * 64,
        split="test",
        rows=40,
        binning="2 equal bins",
        ece=0.1,
        brier=0.3,
        bins=bins,
    )
    metrics = formats.metrics(accuracy=0.925, loss=0.25)
    slices = {
        "class=0": {"rows": 20, "metrics": {"accuracy": 0.9}},
        "class=1": {"rows": 20, "metrics": {"accuracy": 0.95}},
    }
    registry.register(
        formats.draft(
            description="Reads digits.\nFor tests.",
            tags={"team": "vision", "noa.seed": "3", "noa.data.test": "sha256:" + "e" * 64},
            evidence=(
                formats.equivalence(),
                replace(metrics, values={**metrics.values, "rows": 40, "slices": slices}),
                calibration.to_evidence(),
            ),
        ),
        actor="ada",
    )
    registry.promote("digits", 1, reason="first", actor="ada")
    return registry


def normalised(text: str) -> str:
    """Take out what differs from run to run: digests of bytes with a time in them, and times."""
    text = re.sub(r"sha256:[0-9a-f]{12,64}", "sha256:…", text)
    text = re.sub(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2} UTC", "TIME", text)
    return re.sub(r"dataset [0-9a-f]{12}", "dataset …", text)


def test_a_card_has_the_structure_of_the_golden_file(registered: Registry) -> None:
    # To renew it: write `normalised(card)` to the file, and read the difference.
    assert normalised(registered.card("digits@champion").to_markdown()) == GOLDEN.read_text()


def test_the_page_says_what_the_markdown_says(registered: Registry) -> None:
    card = registered.card("digits/1")
    reader = Reader()
    reader.feed(card.to_html())
    assert reader.tags <= TAGS
    assert [section.title for section in card.to_document().sections] == re.findall(
        r"(?m)^## (.*)$", card.to_markdown()
    )
    words = " ".join(reader.texts)
    for part in (
        "Reads digits.",
        "vision",
        "0.925",
        "class=0",
        "expected calibration error 0.1000",
        "Gate of @champion",
    ):
        assert part in words
    assert card.to_html() == registered.card("digits/1").to_html()


def test_what_was_not_measured_is_said(registry: Registry, formats: Formats) -> None:
    registry.register(formats.draft(evidence=(), git_commit=None), actor="ada")
    card = registry.card("digits/1").to_markdown()
    limits = card.partition("## Limits")[2].partition("## ")[0]
    for said in (
        "No metric was measured",
        "Calibration was not measured",
        "Latency was not measured",
        "The format onnx was not shown",
        "not scanned",
        "not signed",
        "source code it was trained from is not recorded",
        "Nobody has trained it a second time",
    ):
        assert said in limits
    registry.register(formats.draft(git_commit="0" * 40 + "-dirty"), actor="ada")
    assert "files that no commit holds" in registry.card("digits/2").to_markdown()


@pytest.mark.parametrize(("recorded", "said"), [("{}", "none"), ('{"epochs": 3}', '{"epochs": 3}')])
def test_changes_to_the_recipe_are_said_or_none(registry: Registry, formats: Formats, recorded: str, said: str) -> None:
    registry.register(formats.draft(tags={"noa.overrides": recorded}), actor="ada")
    (training,) = [s for s in registry.card("digits/1").to_document().sections if s.title == "Training"]
    assert isinstance(training.blocks[0], Table)
    assert ("changes to the recipe", said) in training.blocks[0].rows


def test_a_page_fetches_and_runs_nothing(registered: Registry) -> None:
    reader = Reader()
    page = registered.card("digits/1").to_html()
    reader.feed(page)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action", "data", "xlink:href")
        assert name != "href" or value.startswith("#")
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert "@import" not in page
    assert "url(" not in page.replace("url(#tip)", "")


def test_a_digest_breaks_in_its_middle_and_a_table_of_facts_fits_a_phone(registered: Registry) -> None:
    page = registered.card("digits/1").to_html()
    cells = re.findall(r'<td class="digest">(.*?)</td>', page)
    assert cells
    assert {tuple(map(len, cell.split("<wbr>"))) for cell in cells} == {(36, 35)}
    (run,) = re.findall(r'<table class="facts">(?:(?!</table>).)*<th scope="row">run</th>', page)
    assert run
    assert ".facts td, .facts td.digest { overflow-wrap: anywhere; }" in page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_text_is_only_text_in_a_page(hostile: str) -> None:
    document = hostile_document(hostile)
    expected, reader = Reader(), Reader()
    expected.feed(to_html(hostile_document("x")))
    reader.feed(to_html(document))
    assert reader.tags == expected.tags
    assert [(tag, name) for tag, name, _ in reader.attributes] == [(tag, name) for tag, name, _ in expected.attributes]
    assert all(char.isprintable() or char == "\n" for text in reader.texts for char in text)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_text_is_only_text_in_markdown(hostile: str) -> None:
    from markdown_it import MarkdownIt

    def shape(text: str) -> list[str]:
        parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(to_markdown(hostile_document(text)))
        kinds = [token.type for token in parsed]
        inner = [child.type for token in parsed for child in token.children or ()]
        assert not {"html_inline", "html_block", "link_open", "image", "code_inline"} & {*kinds, *inner}
        return kinds

    assert shape(hostile) == shape("x")


def hostile_document(text: str) -> Document:
    blocks = (
        Text(text),
        Bullets((text, "b")),
        Table((text, "b"), ((text, 1), ("a", text)), text),
        Table((), ((text, text),)),
    )
    return Document(title=text, subtitle=text, sections=(Section(title=text, blocks=blocks),))


def test_hostile_records_stay_text_in_a_whole_card(registry: Registry, formats: Formats) -> None:
    text = " ".join(HOSTILE).replace("\x00", "")  # PostgreSQL holds none
    reproduction = Evidence(
        kind="reproduction",
        subject="torch",
        digest="sha256:" + "1" * 64,
        values={"source": text, "verdict": text},
    )
    registry.register(
        formats.draft(
            description=text,
            tags={"note": text, "noa.recipe": text, "<b>": text},
            params={"<i>": text, "nested": {"x": text}},
            environment={"python": "3.11.7", "<script>": text},
            evidence=(formats.equivalence(), reproduction),
        ),
        actor=text[:200],
    )
    registry.promote("digits", 1, reason=re.sub(r"[\x00-\x1f\x7f-\x9f]", "", text), actor="ada")  # the rest is kept
    card = registry.card("digits/1")
    reader = Reader()
    reader.feed(card.to_html())
    assert reader.tags <= TAGS
    assert not [name for _, name, _ in reader.attributes if name.startswith("on") or name == "src"]
    assert [value for _, name, value in reader.attributes if name == "href" and not value.startswith("#")] == []
    assert "alert(1)" in " ".join(reader.texts)


def test_the_code_of_a_card_runs_as_it_is_written(registered: Registry) -> None:
    code = re.findall(r"```python\n(.*?)```", registered.card("digits/1").to_markdown(), re.DOTALL)
    assert len(code) == 3
    for block in code:
        compile(block, "card", "exec")
    example = code[0].partition("model.run(")[2].rpartition(")")[0]
    outputs = registered.load("digits/1").run(eval(example, {"np": __import__("numpy")}))
    assert outputs["logits"].shape == (1, 3)
