"""A cron expression is checked before anything else is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from flows_helpers import make_project

from noa.errors import InvalidInputError
from noa_flows import schedule


@pytest.mark.prefect
@pytest.mark.parametrize("cron", ["61 3 * * *", "0 25 * * *", "every day", "", "* * *"])
def test_a_bad_expression_is_told_while_no_server_runs(
    cron: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_project(tmp_path_factory.mktemp("idle"))
    monkeypatch.setenv("PREFECT_HOME", str(settings.state_dir / "prefect"))
    with pytest.raises(InvalidInputError, match="is no cron expression"):
        schedule(settings, "tiny", cron)


def test_prefect_keeps_its_files_in_the_project(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a process of its own: the place is chosen when Prefect is first imported."""
    home, project = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("idle") / "prefect"
    code = (
        "import sys; from pathlib import Path; from noa_flows._prefect_cron import check_cron; "
        "print(check_cron('  0 3\\t* *  mon ', prefect_home=Path(sys.argv[1])))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_HOME"} | {"HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(project)], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "0 3 * * mon\n"), result.stderr
    assert not (home / ".prefect").exists()
    assert project.is_dir()
