"""A card as one HTML file: no script, nothing fetched, readable on paper, on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from noa_registry.cards.document import Block, Bullets, Code, Document, Picture, Reliability, Section, Table, Text

# A value that got past the escaping would still find nothing that it may do.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE: Final = """
:root { --ink: #1c2733; --soft: #5c6773; --line: #dde3e9; --page: #ffffff; --wash: #f5f7f9; --good: #1e7b45;
  --bad: #b3261e; --mark: #1f66b0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #98a4b0; --line: #333d47; --page: #14191e;
  --wash: #1c2329; --good: #6fd69a; --bad: #ff9a90; --mark: #7db8f2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0; overflow-wrap: anywhere; }
.subtitle { color: var(--soft); margin: .2rem 0 1.5rem; overflow-wrap: anywhere; font-family: ui-monospace, monospace;
  font-size: .82rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; font-size: .88rem; }
nav a { color: var(--mark); text-decoration: none; }
p { margin: .5rem 0; overflow-wrap: anywhere; white-space: pre-line; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.muted { color: var(--soft); }
ul { margin: .5rem 0; padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
.caption { color: var(--soft); font-size: .9rem; margin: 1.1rem 0 0; }
.caption + .scroll { margin-top: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; }
td.digest { font-family: ui-monospace, monospace; font-size: .8rem; overflow-wrap: normal; }
.facts td, .facts td.digest { overflow-wrap: anywhere; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; font: .82rem/1.5 ui-monospace, monospace; margin: .6rem 0; }
figure { margin: .8rem 0; overflow-x: auto; }
figcaption { color: var(--soft); font-size: .85rem; }
svg { max-width: 100%; height: auto; border-radius: 6px; }
.wide svg { max-width: none; }
@media print { nav { display: none; } pre, tr, figure { break-inside: avoid; } }
"""


def to_html(document: Document) -> str:
    """Return the card as a page."""
    links = "".join(
        f'<a href="#s{index}">{_text(section.title)}</a>' for index, section in enumerate(document.sections)
    )
    sections = "\n".join(_section(section, index) for index, section in enumerate(document.sections))
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{_text(document.title)}</h1>\n<p class="subtitle">{_text(document.subtitle)}</p>\n'
        f"<nav>{links}</nav>\n{sections}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section, index: int) -> str:
    blocks = "\n".join(part for block in section.blocks for part in _block(block))
    return f'<section id="s{index}">\n<h2>{_text(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text():
            yield f'<p class="{block.tone}">{_text(block.text)}</p>'
        case Bullets():
            yield "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block.items) + "</ul>"
        case Table():
            yield _table(block)
        case Code():
            yield f"<pre><code>{_text(block.text)}</code></pre>"
        case Reliability():
            yield f"<figure>{reliability_svg(block)}<figcaption>{_text(block.caption)}</figcaption></figure>"
        case Picture():
            yield f'<figure class="wide">{block.svg}</figure>'


def _table(table: Table) -> str:
    # Not a <caption>: that is as narrow as its table.
    caption = f'<p class="caption">{_text(table.caption)}</p>' if table.caption else ""
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in table.headings)
    body = "".join(f"<tr>{''.join(_cells(row, is_facts=not table.headings))}</tr>" for row in table.rows)
    thead = f"<thead><tr>{head}</tr></thead>" if head else ""
    kind = "" if table.headings else ' class="facts"'
    return f'{caption}<div class="scroll"><table{kind}>{thead}<tbody>{body}</tbody></table></div>'


def _cells(row: tuple[object, ...], *, is_facts: bool) -> Iterator[str]:
    for index, cell in enumerate(row):
        text = "–" if cell is None else str(cell)  # noqa: RUF001
        if is_facts and index == 0:
            yield f'<th scope="row">{_text(text)}</th>'
            continue
        kind = "number" if isinstance(cell, int | float) else "digest" if text.startswith("sha256:") else ""
        tone = {"passed": "good", "refused": "bad", "failed": "bad"}.get(text, "")
        classes = " ".join(filter(None, (kind, tone)))
        shown = _halves(text) if kind == "digest" else _text(text)
        yield f'<td class="{classes}">{shown}</td>' if classes else f"<td>{shown}</td>"


def _halves(digest: str) -> str:
    """Return a digest that stands on one line or on two of one length, and not on one and a last character."""
    middle = (len(digest) + 1) // 2
    return f"{_text(digest[:middle])}<wbr>{_text(digest[middle:])}"


def reliability_svg(block: Reliability) -> str:
    """Return the reliability diagram: accuracy over confidence, rows as bars below; on the diagonal is calibrated."""
    left, top, side, foot = 46, 10, 240, 52
    width, height = left + side + 14, top + side + foot + 36
    most = max((rows for _, _, rows in block.bins), default=1)

    def x(value: float) -> float:
        return left + side * value

    def y(value: float) -> float:
        return top + side * (1 - value)

    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="330" role="img" '
        f'aria-label="{_text(block.caption)}" font-size="10" fill="#5c6773" '
        f'font-family="ui-sans-serif, system-ui, sans-serif"><rect width="{width}" height="{height}" fill="#ffffff"/>'
    )
    grid = [
        f'<path d="M{x(tick):.1f} {y(0):.1f}V{y(1):.1f}M{x(0):.1f} {y(tick):.1f}H{x(1):.1f}" stroke="#e3e8ed"/>'
        f'<text x="{left - 6}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>'
        f'<text x="{x(tick):.1f}" y="{top + side + foot + 14}" text-anchor="middle">{tick:g}</text>'
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    diagonal = f'<path d="M{x(0)} {y(0)}L{x(1)} {y(1)}" stroke="#9aa4ae" stroke-dasharray="4 3"/>'
    points = "L".join(f"{x(confidence):.1f} {y(accuracy):.1f}" for confidence, accuracy, _ in block.bins)
    line = f'<path d="M{points}" fill="none" stroke="#1f66b0" stroke-width="1.6"/>' if points else ""
    marks = [
        f'<circle cx="{x(confidence):.1f}" cy="{y(accuracy):.1f}" r="3.2" fill="#1f66b0"><title>confidence '
        f"{confidence:.3f}, accuracy {accuracy:.3f}, {rows} rows</title></circle>"
        f'<rect x="{x(confidence) - 4:.1f}" y="{top + side + foot - (foot - 14) * rows / most:.1f}" width="8" '
        f'height="{(foot - 14) * rows / most:.1f}" fill="#a9c6e6"/>'
        for confidence, accuracy, rows in block.bins
    ]
    labels = (
        f'<text x="{left + side / 2}" y="{top + side + foot + 30}" text-anchor="middle">confidence</text>'
        f'<text transform="translate(12 {top + side / 2}) rotate(-90)" text-anchor="middle">accuracy</text>'
        f'<text x="{left - 6}" y="{top + side + foot}" text-anchor="end">rows</text></svg>'
    )
    return "".join([opening, *grid, diagonal, line, *marks, labels])


def _text(text: str) -> str:
    """Return a text as characters that are nothing but text; what cannot be shown becomes a mark."""
    visible = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return escape(visible, quote=True)
