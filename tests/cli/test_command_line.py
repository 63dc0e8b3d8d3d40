"""The front door: help, exit codes, one-line errors, JSON, common options anywhere."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from noa import atomic_write
from noa.errors import ConflictError
from noa_cli.__main__ import run
from noa_cli.commands import doctor
from noa_cli.commands.project import write_project

Noa = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def noa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Noa:
    """Runs `noa` in this process: one of its own takes half a second to start, and tells the same."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = run([*arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


@pytest.fixture
def started(tmp_path: Path) -> Noa:
    """Runs `noa` in a process of its own, as people do."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "noa_cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)

    return call


def test_help_lists_every_command(started: Noa) -> None:
    result = started("--help")
    assert result.returncode == 0
    for command in (
        "init",
        "demo",
        "up",
        "down",
        "status",
        "train",
        "models",
        "convert",
        "serve",
        "predict",
        "flows",
        "config",
        "doctor",
    ):
        assert f" {command} " in result.stdout


@pytest.mark.parametrize(
    "command",
    ["init", "demo", "up", "down", "status", "train", "models list", "models show", "models promote", "models rollback",
     "models history", "models check", "models verify", "convert", "serve", "predict", "flows list", "flows run",
     "flows schedule", "config show", "config explain", "config validate", "config schema", "config diff", "doctor"],
)  # fmt: skip
def test_every_command_has_help_with_the_common_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--debug" in text
    assert "--directory" in text


def test_wrong_usage_exits_with_2(started: Noa) -> None:
    for arguments in (["nonsense"], ["models"], ["train"], ["config", "show", "--nonsense"]):
        result = started(*arguments)
        assert result.returncode == 2, arguments
        assert "Traceback" not in result.stderr


def test_an_error_is_one_line_with_exit_code_1(started: Noa) -> None:
    result = started("models", "list")
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: no `noa.toml` here or in a folder above")
    assert "noa init" in lines[0]


def test_debug_adds_the_traceback(started: Noa) -> None:
    result = started("models", "list", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_an_error_under_json_is_json_with_its_parts(started: Noa) -> None:
    result = started("models", "list", "--json")
    assert result.returncode == 1
    parts = json.loads(result.stderr)
    assert parts["error"] == "NotFoundError"
    assert "noa init" in parts["remedy"]


def test_common_options_stand_before_or_after_the_command(noa: Noa) -> None:
    for arguments in (
        ["-o", "serving.port=7", "config", "show", "--json"],
        ["config", "show", "--json", "-o", "serving.port=7"],
    ):
        result = noa(*arguments)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["serving.port"] == 7


def test_malformed_toml_names_line_and_column(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("[serving]\nport = = 3\n")
    result = noa("config", "validate")
    assert result.returncode == 1
    assert "line 2, column 8" in result.stderr
    assert "noa.toml:2:8" in result.stderr


def test_show_origin_and_explain(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("[serving]\nport = 3\n")
    shown = json.loads(noa("config", "show", "--origin", "serving.port", "--json").stdout)
    assert shown == [{"key": "serving.port", "value": 3, "origin": f"{tmp_path / 'noa.toml'}:2:1"}]
    assert "NOA__SERVING__PORT" in noa("config", "explain", "serving.port").stdout
    assert noa("config", "explain", "serving.nope").returncode == 1


def test_explain_names_only_the_ways_that_set_a_key(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("[gates.digits]\nconfidence = 0.9\n")
    told = noa("config", "explain", "gates.digits.confidence").stdout
    assert "NOA__" not in told
    assert "-o gates" not in told
    for way in ("`noa.toml`", "a profile of it", "--config FILE"):
        assert way in told
    assert json.loads(noa("config", "explain", "gates.digits.confidence", "--json").stdout)["environment"] is None
    assert noa("config", "show", "-o", "gates.digits.confidence=0.5").returncode == 1
    other = noa("config", "explain", "serving.port").stdout
    assert "NOA__SERVING__PORT" in other
    assert "-o serving.port=" in other


def test_explain_tells_what_holds_now_and_where_it_comes_from(
    noa: Noa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noa.toml").write_text("[gates.digits]\nconfidence = 0.9\n")
    origin = f"{tmp_path / 'noa.toml'}:2:1"
    assert f"0.9 ({origin})" in noa("config", "explain", "gates.digits.confidence").stdout
    shown = json.loads(noa("config", "explain", "gates.digits.confidence", "--json").stdout)
    assert (shown["value"], shown["origin"], shown["problem"]) == (0.9, origin, None)
    assert "nothing has set `gates.other`" in noa("config", "explain", "gates.other.confidence").stdout
    monkeypatch.setenv("NOA__SERVING__PORT", "7")
    assert "7 (environment NOA__SERVING__PORT)" in noa("config", "explain", "serving.port").stdout
    (tmp_path / "noa.toml").write_text("[serving]\nport = true\n")
    monkeypatch.delenv("NOA__SERVING__PORT")
    broken = noa("config", "explain", "serving.port")
    assert broken.returncode == 0
    assert "not valid" in broken.stdout
    assert "noa.toml:2:1" in broken.stdout


def test_explain_says_of_a_key_without_a_default_that_it_must_be_set(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text('[endpoints.digits]\nmodel = "digits@champion"\n')
    told = noa("config", "explain", "endpoints.digits.model")
    assert told.returncode == 0, told.stderr
    assert "default      none, it must be set" in told.stdout
    assert "now          digits@champion (" in told.stdout
    shown = json.loads(noa("config", "explain", "endpoints.digits.model", "--json").stdout)
    assert (shown["default"], shown["is_required"], shown["value"]) == (None, True, "digits@champion")
    assert json.loads(noa("config", "explain", "serving.port", "--json").stdout)["is_required"] is False


@pytest.mark.parametrize("command", ["explain", "show"])
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("serving.prt", "Did you mean `serving.port`?"),
        ("sevring.prt", "Did you mean `serving.port`?"),
        ("port", "`serving.port` or `flows.port`"),
        ("registry.principals.ada", "`noa config explain registry.principals`"),
        ("nonsense", "List them with `noa config show`"),
    ],
)
def test_a_key_that_is_none_is_answered_with_what_was_meant(noa: Noa, command: str, key: str, meant: str) -> None:
    result = noa("config", command, key)
    assert result.returncode == 1
    assert meant in result.stderr


def test_diff_shows_what_a_profile_changes(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("[profiles.prod.serving]\nport = 9\n")
    assert json.loads(noa("config", "diff", "-", "prod", "--json").stdout) == [
        {"key": "serving.port", "a": 3000, "b": 9, "is_secret": False}
    ]


def test_diff_tells_that_secrets_differ_and_shows_neither(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("""
        [registry]
        database_url = "postgresql://ada:first@db/noa"
        [serving]
        api_keys = ["a-secret-of-twenty-letters"]
        [profiles.same.serving]
        api_keys = ["a-secret-of-twenty-letters"]
        [profiles.prod.serving]
        api_keys = ["another-of-twenty-letters"]
        [profiles.prod.registry]
        database_url = "postgresql://ada:second@db/noa"
    """)
    found = noa("config", "diff", "-", "prod")
    words = [line.split() for line in found.stdout.splitlines()]
    assert ["serving.api_keys", '["********"]', '["********"]', "(another", "secret)"] in words
    url = "postgresql://ada:********@db/noa"
    assert ["registry.database_url", url, url, "(another", "secret)"] in words
    table = json.loads(noa("config", "diff", "-", "prod", "--json").stdout)
    assert {"key": "serving.api_keys", "a": ["********"], "b": ["********"], "is_secret": True} in table
    for shown in (found.stdout, json.dumps(table)):
        assert not any(secret in shown for secret in ("twenty", "first", "second"))
    assert noa("config", "diff", "-", "same").stdout == "no difference\n"


def test_the_schema_is_json_schema(noa: Noa) -> None:
    schema = json.loads(noa("config", "schema").stdout)
    assert schema["properties"]["serving"]


def test_init_writes_a_project_and_refuses_to_overwrite_it(noa: Noa, tmp_path: Path) -> None:
    assert noa("init", "fresh").returncode == 0
    assert {path.name for path in (tmp_path / "fresh").iterdir()} >= {"noa.toml", "recipe.py", ".gitignore"}
    assert noa("config", "validate", "-C", "fresh").returncode == 0
    (tmp_path / "fresh" / "noa.toml").write_text("# mine\n")
    again = noa("init", "fresh")
    assert again.returncode == 1
    assert "already there" in again.stderr
    assert (tmp_path / "fresh" / "noa.toml").read_text() == "# mine\n"


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_init_that_was_killed_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    real, left = atomic_write.write_file, [written]

    def die(path: Path, data: bytes | str) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(atomic_write, "write_file", die)
        write_project(tmp_path, template="digits", name="mine")
    write_project(tmp_path, template="digits", name="mine")
    assert {path.name for path in tmp_path.iterdir()} == {"noa.toml", "recipe.py", ".gitignore"}


def test_init_takes_no_recipe_of_somebody_else_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("# mine\n")
    with pytest.raises(ConflictError, match=r"`recipe.py` is already there"):
        write_project(tmp_path, template="digits", name="mine")


def test_init_dry_run_writes_nothing(noa: Noa, tmp_path: Path) -> None:
    result = noa("init", "fresh", "--dry-run")
    assert result.returncode == 0
    assert "would write" in result.stdout
    assert not (tmp_path / "fresh").exists()


def test_init_keeps_a_gitignore(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log")
    assert noa("init").returncode == 0
    assert (tmp_path / ".gitignore").read_text() == "*.log\n.noa/\n__pycache__/\n*.key\n*.pem\n!*.pub.pem\n"


def test_init_writes_nothing_where_gitignore_is_no_file(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "fresh" / ".gitignore").mkdir(parents=True)
    result = noa("init", "fresh")
    assert (result.returncode, "`.gitignore` is a folder" in result.stderr) == (1, True)
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == [".gitignore"]


def test_the_next_command_of_init_can_be_copied_whatever_the_folder_is_called(noa: Noa, tmp_path: Path) -> None:
    told = noa("init", "bad name!", "--name", "mine").stdout
    step = told.partition("Next: ")[2].partition(" && ")[0]
    assert shlex.split(step) == ["cd", "bad name!"]
    secret = tmp_path / "bad name!" / ".gitignore"
    assert {"*.key", "*.pem"} <= set(secret.read_text().splitlines())


def test_readme_names_every_extra() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert [extra for extra in doctor.EXTRAS if f"noa[{extra}]" not in text] == []


def test_unknown_template_and_missing_project_folder_are_told(noa: Noa) -> None:
    assert "no template `x`" in noa("init", "--template", "x").stderr
    assert "no such project folder" in noa("models", "list", "-C", "missing").stderr


def test_doctor_reports_and_finds_a_broken_project(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("")
    findings = json.loads(noa("doctor", "--json").stdout)
    assert {finding["name"] for finding in findings} >= {"python", "noa[torch]", "project", "registry", "disk"}
    assert all(finding["state"] != "problem" for finding in findings)
    (tmp_path / "noa.toml").write_text("[serving]\nprot = 1\n")
    broken = noa("doctor")
    assert broken.returncode == 1
    assert "serving.port" in broken.stdout


def test_doctor_counts_in_good_english(noa: Noa, tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("[gates.digits]\nmin_metrics = { accuracy = 0.5 }\n")
    details = {one["name"]: one["detail"] for one in json.loads(noa("doctor", "--json").stdout)}
    assert details["project"].endswith("1 setting set")
    assert not re.search(r"\b1 (models|settings|rows)\b", " ".join(details.values()))
    assert "valid: 1 setting set" in noa("config", "validate").stdout


def test_doctor_knows_the_extras_of_pyproject() -> None:
    told = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def packages(extra: str) -> set[str]:
        names: set[str] = set()
        for requirement in told[extra]:
            name, _, rest = re.split(r"([\[<>=;]|$)", requirement, maxsplit=1)
            parts = rest.split("]")[0].split(",") if name == "noa" else []
            names |= {name} - {"noa"} | {each for part in parts for each in packages(part)}
        return names

    assert set(doctor.EXTRAS) == set(told) - {"all", "dev"}
    for extra, named in doctor.EXTRAS.items():
        assert packages(extra) <= set(named), extra


def test_doctor_takes_no_extra_for_whole_that_lacks_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(package: str) -> str:
        if package in ("torch", "prefect"):
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr("noa_cli.commands.doctor.version", find)
    found = {finding.name: finding for finding in doctor._examine()}
    assert found["noa[demo]"].state == "warning"
    assert "torch, prefect" in found["noa[demo]"].detail
    assert found["noa[jax]"].state == "ok"


def test_doctor_raises_no_alarm_for_what_a_failed_registration_left(
    noa: Noa, tmp_path: Path, add_empty_registry: Callable[[Path], None]
) -> None:
    (tmp_path / "noa.toml").write_text("")
    add_empty_registry(tmp_path)
    (tmp_path / ".noa" / "artifacts" / "digits").mkdir(parents=True)
    (registry,) = (each for each in json.loads(noa("doctor", "--json").stdout) if each["name"] == "registry")
    assert registry["state"] == "ok"
    (tmp_path / ".noa" / "artifacts" / "digits" / "a1b2").mkdir()
    (registry,) = (each for each in json.loads(noa("doctor", "--json").stdout) if each["name"] == "registry")
    assert "versions of `digits` that the database does not know" in registry["detail"]


@pytest.mark.parametrize("command", [("doctor",), ("config", "validate")])
def test_a_key_that_cannot_sign_is_found_before_anybody_works(
    noa: Noa, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "noa.toml").write_text('[registry.signing]\nprivate_key = "missing.pem"\n')
    result = noa(*command)
    assert result.returncode == 1
    assert "`missing.pem` cannot be read" in " ".join((result.stdout + result.stderr).split())


_WITHOUT = """
import sys
class Hide:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hide, sys.meta_path)
from noa_cli.__main__ import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("hidden", "arguments", "extra"),
    [
        ({"boto3", "botocore"}, ("models", "list", "-o", "registry.artifact_url=s3://bucket/place"), "noa[s3]"),
        ({"botocore"}, ("models", "list", "-o", "registry.artifact_url=s3://bucket/place"), "noa[s3]"),
        ({"prefect"}, ("up",), "noa[flows]"),
        ({"prefect"}, ("status",), None),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path,
    add_empty_registry: Callable[[Path], None],
    hidden: set[str],
    arguments: tuple[str, ...],
    extra: str | None,
) -> None:
    (tmp_path / "noa.toml").write_text("")
    add_empty_registry(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT.format(hidden=hidden), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == (0 if extra is None else 1), result.stderr
    if extra is not None:
        assert f'pip install "{extra}"' in result.stderr


def test_where_the_package_of_s3_is_missing_nothing_is_made(tmp_path: Path) -> None:
    settings = '[registry]\nartifact_url = "s3://bucket/place"\n[registry.s3]\nregion = "eu-west-1"\n'
    (tmp_path / "noa.toml").write_text(settings)
    for words in (("models", "list"), ("models", "verify"), ("models", "import", "noa.toml", "--name", "m")):
        result = subprocess.run(
            [sys.executable, "-c", _WITHOUT.format(hidden={"boto3"}), *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (result.returncode, 'pip install "noa[s3]"' in result.stderr) == (1, True), result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["noa.toml"], words


def test_the_library_as_documented_sees_what_the_command_line_sees(
    noa: Noa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noa.toml").write_text('[project]\nname = "x"\n')
    (tmp_path / "home" / "noa").mkdir(parents=True)
    own = '[registry.signing]\nrequired = true\ntrusted_keys = ["ada.pub.pem"]\n'
    (tmp_path / "home" / "noa" / "noa.toml").write_text(own)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NOA__REGISTRY__DATABASE_URL", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    program = """
import json
from pathlib import Path
from noa.settings import list_values, load_settings
loaded = load_settings(Path("."))
assert loaded.settings.registry.signing.required
print(json.dumps({value.key: value.value for value in list_values(loaded)}))
"""
    command = [sys.executable, "-c", program]
    library = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    shown = json.loads(noa("config", "show", "--json").stdout)
    assert json.loads(library.stdout) == shown
    assert shown["registry.database_url"].endswith("elsewhere.db")


def test_init_tells_what_is_set_outside_of_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOA__REGISTRY__DATABASE_URL", "sqlite:////elsewhere.db")
    assert run(["init", str(tmp_path / "mine")]) == 0
    told = "note: `registry.database_url` is set outside of noa.toml: environment NOA__REGISTRY__DATABASE_URL"
    assert told in capfd.readouterr().out


def test_completion_offers_the_commands(noa: Noa) -> None:
    command = [sys.executable, "-m", "noa_cli"]
    environment = {
        "_NOA_COMPLETE": "complete_bash",
        "COMP_WORDS": "noa mod",
        "COMP_CWORD": "1",
        "PATH": "/usr/bin:/bin",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert "models" in result.stdout.split()


def test_output_that_nobody_reads_is_no_error() -> None:
    command = f"{sys.executable} -m noa_cli config schema | head -1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stderr == ""


def test_an_unreadable_folder_is_one_line(noa: Noa, tmp_path: Path) -> None:
    """Root may read everything, so the folder is made unusable by a file in its place."""
    (tmp_path / "noa.toml").write_text("")
    (tmp_path / ".noa").write_text("not a folder")
    result = noa("models", "list")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert ".noa" in result.stderr


def test_a_second_ctrl_c_ends_at_once_and_prints_no_traceback(tmp_path: Path) -> None:
    program = (
        "import signal, sys, noa_cli.__main__ as main, noa_cli._app as app\n"
        "def command(*_, **__):\n"
        "    raise KeyboardInterrupt\n"
        "app.command = lambda: command\n"
        "main._say = lambda text: signal.raise_signal(signal.SIGINT)\n"
        "main.main(['status'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
