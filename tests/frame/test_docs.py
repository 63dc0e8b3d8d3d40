"""What the documentation tells people to type is real: commands parse, Python runs, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from warm_client import WarmProcess

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md"), *ROOT.glob("*/README.md")]
)


def blocks(page: Path, language: str) -> list[str]:
    found: list[str] = []
    inside: str | None = None
    lines: list[str] = []
    for line in page.read_text().splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif inside is None:
            inside, lines = line[3:].strip(), []
        else:
            found += ["\n".join(lines) + "\n"] if inside == language else []
            inside = None
    return found


def commands(page: Path) -> list[str]:
    found: list[str] = []
    for language in ("bash", "console", ""):
        for block in blocks(page, language):
            for line in block.replace("\\\n", " ").splitlines():
                text = re.sub(r"^\$ ", "", line.strip())
                for part in re.split(r"\s+(?:&&|\|)\s+", text):
                    words = shlex.split(part, comments=True) if re.match(r"(?:\.venv/bin/)?noa\b", part) else []
                    if len(words) > 1:
                        found.append(shlex.join(["noa", *words[1:]]))
    return found


# A page's blocks, one after the other as somebody types them, but none has a name that another gave to something.
IN_TURN = """
import json, warnings

for warn, block in json.loads({blocks!r}):
    warnings.resetwarnings()
    warnings.simplefilter(warn)
    print(block, flush=True)
    exec(compile(block, "<block>", "exec"), {{"__name__": "__main__"}})
"""
WRAPPED = [
    page
    for page in PAGES
    if page.parent.name in ("docs", "core", "cli", "flows")
    or page.parents[1] == ROOT / "examples"
    or (page.name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md") and page.parent == ROOT)
]


@pytest.mark.parametrize("page", WRAPPED, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_and_code_fit_into_120_columns(page: Path) -> None:
    """A row of a table is one line, however long."""
    lines = enumerate(page.read_text().splitlines(), start=1)
    assert [f"{number}: {line}" for number, line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_pages_are_found() -> None:
    assert {"README.md", "start.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_noa_command_in_the_docs_parses(page: Path) -> None:
    import typer.main

    from noa_cli._app import build

    root = typer.main.get_command(build())
    for line in commands(page):
        words = shlex.split(line)[1:]
        command, trail = root, "noa"
        while words and hasattr(command, "commands") and words[0] in command.commands:
            trail = f"{trail} {words[0]}"
            command = command.commands[words.pop(0)]
        if words in (["--help"], ["--version"]):
            continue
        assert not hasattr(command, "commands") or words[:1] == ["--install-completion"], (
            f"{page.name}: `{line}` names no command"
        )
        if not hasattr(command, "commands"):
            command.make_context(trail, words)  # raises a usage error that names the wrong part


@pytest.fixture(scope="module")
def warm_python() -> Iterator[WarmProcess]:
    """Runs the blocks of a page in a process of its own, which finds what pages before it have imported."""
    process = WarmProcess()
    yield process
    process.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_docs_runs(
    page: Path, tmp_path: Path, warm_python: WarmProcess, add_empty_registry: Callable[[Path], None]
) -> None:
    if any('Registry.open(load_settings(Path("."))' in block for block in blocks(page, "python")):
        add_empty_registry(tmp_path)
    run: list[tuple[str, str]] = []
    for block in blocks(page, "python"):
        if block.startswith("# not run:"):
            compile(block, str(page), "exec")
            continue
        # MLflow warns of its own insides whenever it loads a model.
        run.append(("default" if "import mlflow" in block else "error", block))
    result = warm_python.script(IN_TURN.format(blocks=json.dumps(run)), folder=tmp_path)
    assert result.returncode == 0, f"{page.name}:\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_in_the_docs_is_valid_settings(page: Path, tmp_path: Path) -> None:
    from noa.settings import load_settings

    for block in blocks(page, "toml"):
        (tmp_path / "noa.toml").write_text(block)
        load_settings(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Your first project" in (tmp_path / "build" / "site" / "index.html").read_text()
