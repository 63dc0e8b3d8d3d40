"""Build the wheel and check what it holds: `python scripts/check_wheel.py`.

The wheel must hold exactly our import packages, each with `py.typed`, the licence, and the templates; unpacked into an
empty folder it must be found by `import noa` from there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    packages = {
        Path(path).name
        for path in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
            "packages"
        ]
    }
    with tempfile.TemporaryDirectory() as folder:
        print("wheel: building")
        build = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)],
            capture_output=True,
            text=True,
            check=False,
        )
        if build.returncode != 0:
            sys.stderr.write(build.stdout + build.stderr)
            return 1
        wheel = next(Path(folder).glob("*.whl"))
        problems = inspect(wheel, packages)
        problems += try_import(wheel, Path(folder) / "site")
    for problem in problems:
        print(f"wheel: {problem}", file=sys.stderr)
    print(f"wheel: {wheel.name} holds {', '.join(sorted(packages))}" if not problems else "wheel: refused")
    return 1 if problems else 0


def inspect(wheel: Path, packages: set[str]) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    problems = [f"holds `{top}`, which is not ours" for top in sorted(tops - packages)]
    problems += [f"lacks `{package}`" for package in sorted(packages - tops)]
    problems += [f"lacks `{package}/py.typed`" for package in sorted(packages) if f"{package}/py.typed" not in names]
    problems += [f"holds `{name}`" for name in names if name.endswith((".pyc", ".so", ".db")) or "/.noa/" in name]
    if not any(name.endswith("licenses/LICENSE") for name in names):
        problems.append("lacks the licence")
    if not any(name.endswith("templates/digits/noa.toml") for name in names):
        problems.append("lacks the project templates")
    migrations = ROOT / "registry" / "noa_registry" / "migrations"
    for path in [migrations / "env.py", *migrations.glob("versions/*.py")]:
        wanted = path.relative_to(ROOT / "registry").as_posix()
        if wanted not in names:
            problems.append(f"lacks `{wanted}`, without which no database can be made")
    return problems


def try_import(wheel: Path, site: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -S: without the site packages of the environment, only the wheel's own files can be found.
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import noa; print(noa.__file__)"
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=site)
    if result.returncode != 0 or not result.stdout.startswith(str(site)):
        return [f"`import noa` from the wheel failed: {result.stderr.strip()[-200:]}"]
    return []


if __name__ == "__main__":
    sys.exit(main())
