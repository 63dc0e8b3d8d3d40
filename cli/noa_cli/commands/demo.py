"""`noa demo`: real data through the whole life of a model, on this machine, cleaned up afterwards."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa.plain_paths import plain_path
from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption
from noa_cli.commands.project import write_project

if TYPE_CHECKING:
    from noa.settings import LoadedSettings, Settings

# The demo's project is its own: what decides where it writes and who may call is not read from outside of it.
_FROM_OUTSIDE = (
    "flows.start_timeout_s",
    "flows.stop_timeout_s",
    "registry.lock_timeout_s",
    "serving.threads",
    "serving.timeout_s",
    "training.log_every_steps",
    "training.threads",
)
_START_TIMEOUT = "flows.start_timeout_s"
_START_TIMEOUT_S = 300  # the services start while both backends train, on a machine that may have two cores
_NEEDED = {"torch": "torch", "jax": "jax", "bentoml": "serve", "prefect": "flows", "sklearn": "demo"}


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the project and its services running at the end.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to make the project (default: a temporary folder).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train, register, convert, verify, promote, serve, retrain, swap and roll back; about two minutes on two cores.

    The demo is a project of its own and leaves yours alone: of NOA__* variables and your own settings it takes time
    limits and numbers of threads only. If it fails, its folder is kept, logs and all.
    """
    from noa.errors import ConflictError, NoaError
    from noa_cli._demo_run import Demo

    _require_extras()
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise ConflictError(f"`{folder}` is not empty", remedy="Choose another folder; nothing was written")
    root = plain_path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="noa-demo-"))
    write_project(root, template="digits", name="noa-demo")
    try:
        settings = demo_settings(root)
    except NoaError:
        shutil.rmtree(root)
        raise
    console.note(f"The demo's project is {root}")
    goes = folder is None  # a temporary folder goes, unless there is something to look for in it
    is_kept = False
    try:
        report = Demo(settings, quiet=as_json).run()
        is_kept = keep
        goes = goes and not report.problems
    except Exception:
        goes = False
        raise
    finally:
        if not is_kept:
            _clean_up(settings, root, remove=goes)
            if folder is None and not goes:
                logs = settings.state_dir / "logs"
                console.note(f"The demo failed; its folder is kept, the logs are in {logs}. Remove it: rm -r {root}")
    if as_json:
        console.print_json({**report.values, "problems": list(report.problems), "kept": keep})
    else:
        _say_goodbye(root, keep=keep, seconds=report.values["seconds"])
        for problem in report.problems:
            console.print_line(f"PROBLEM: {problem}", "red")
    if report.problems:
        raise typer.Exit(1)


def demo_settings(root: Path) -> Settings:
    """Return the settings of a demo in `root`: its own file, `-o`, and of what is outside time limits and threads."""
    from noa.settings import load_settings

    ports = tuple(f"{section}.port=0" for section in ("serving", "flows", "tracking"))
    asked = current()

    def load(*defaults: str) -> LoadedSettings:
        overrides = (*ports, "serving.poll_interval_s=0.2", *defaults, *asked.overrides)
        return load_settings(
            root,
            profile=asked.profile,
            config_files=asked.config_files,
            overrides=overrides,
            outside=_FROM_OUTSIDE,
        )

    loaded = load()
    if _START_TIMEOUT not in loaded.origins:
        loaded = load(f"{_START_TIMEOUT}={_START_TIMEOUT_S}")
    return loaded.settings


def _require_extras() -> None:
    from noa.errors import DependencyMissingError

    for package, extra in _NEEDED.items():
        if find_spec(package) is None:
            raise DependencyMissingError(package, extra="demo", purpose=f"The demo (its part `{extra}`)")


def _clean_up(settings: Settings, root: Path, *, remove: bool) -> None:
    from noa_flows import down

    with console.step("Stopping the services and proving that they are gone"):
        down(settings)
    if remove:
        shutil.rmtree(root)


def _say_goodbye(root: Path, *, keep: bool, seconds: float) -> None:
    console.print_line("")
    console.print_line(f"Done in {seconds:.0f} s.", "bold")
    if keep:
        folder = shlex.quote(str(root))
        console.print_line(f"Everything is left running. Look at it: noa status -C {folder}")
        console.print_line(f"End it:                              noa down -C {folder} && rm -r {folder}")
    else:
        console.print_line(
            "All processes are gone. `noa demo --keep` leaves it running; `noa init` makes your own project."
        )
