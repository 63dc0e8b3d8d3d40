"""The files around the code say what is true."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def rooms() -> list[Path]:
    return [ROOT / Path(path).parent for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def test_every_room_has_a_readme_and_type_marker() -> None:
    for room in rooms():
        assert (room / "README.md").is_file(), f"{room.name}/README.md is missing"
        assert list(room.glob("*/py.typed")), f"{room.name} has no py.typed"


def test_guards_named_in_readmes_exist() -> None:
    """An invariant names the test that guards it; a renamed test must not leave a dangling promise."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"def (test_\w+)", tests)) | {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for page in [ROOT / "ARCHITECTURE.md", *(room / "README.md" for room in rooms())]:
        named = set(re.findall(r"\b(test_[a-z0-9_]+)\b", page.read_text()))
        assert named, f"{page.relative_to(ROOT)} names no test"
        assert named <= defined, f"{page.relative_to(ROOT)} names tests that do not exist: {sorted(named - defined)}"


def test_every_dependency_is_locked() -> None:
    lock = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(item for group in extras.values() for item in group)]
    names = {re.split(r"[\[<>=~! ]", item)[0].lower() for item in wanted} - {"noa"}
    assert names <= lock, f"not in constraints.txt: {sorted(names - lock)}"


def test_the_lock_pins_exact_versions_and_names_no_place() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or not line or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line


def test_no_committed_file_is_large_or_generated() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        path = ROOT / name
        assert not path.is_file() or path.stat().st_size <= 1 << 20, f"{name} is larger than 1 MiB"
        assert not name.endswith((".pyc", ".whl", ".db", ".pt2", ".onnx", ".safetensors")), name


def test_versions_agree() -> None:
    import noa

    assert noa.__version__ == PROJECT["project"]["version"]


def test_templates_are_the_examples() -> None:
    """`noa init` writes the very projects that stand in examples/ and run in the tests."""
    templates = ROOT / "cli" / "noa_cli" / "templates"
    for template in sorted(templates.iterdir()):
        if not template.is_dir():
            continue
        example = ROOT / "examples" / template.name
        for file in template.iterdir():
            assert file.read_text() == (example / file.name).read_text(), f"{file} differs from {example / file.name}"


def test_make_help_lists_every_target_people_call() -> None:
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "check", "bench", "clean"):
        assert f"make {target}" in result.stdout


def recipe(target: str) -> str:
    """Return the commands that `make` would run for a target, each in one line."""
    result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.replace("\\\n", " ")


def test_what_the_suite_leaves_out_is_run_by_the_target_of_its_name() -> None:
    """`make test` runs a sample of the long suites; no test may be left that no target runs."""
    (suite,) = re.findall(r"-m pytest (.*)", recipe("test"))
    (left_out,) = re.findall(r'-m "not ([^"]*)"', suite)
    markers = left_out.split(" and not ")
    assert markers == ["conformance", "chaos"]
    registered = {text.split(":")[0] for text in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for marker in markers:
        runs = re.findall(r"-m pytest (.*)", recipe(marker))
        assert marker in registered
        assert [re.findall(r"-m (\w+)", run) for run in runs] == [[marker]]
        assert not re.search(r"tests/| -k |--deselect|--ignore", runs[0]), "it runs them wherever they are"
    choosing = re.compile(r"^-(m|k)|^--(deselect|ignore)")
    assert not re.search(r" -k |--deselect|--ignore|tests/", suite)
    assert not [text for text in PROJECT["tool"]["pytest"]["ini_options"]["addopts"] if choosing.match(text)]


def test_the_files_that_the_tests_begin_with_exist() -> None:
    from file_order import SLOWEST_FILES

    for name in SLOWEST_FILES:
        assert (ROOT / "tests" / name).is_file(), f"tests/file_order.py names {name}, which is not there"
    assert len(set(SLOWEST_FILES)) == len(SLOWEST_FILES)
