"""What `noa config validate` and `noa doctor` find in settings whose every single value looks right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noa_cli.__main__ import run
from noa_registry import new_key_pair

_HOOK = '[webhooks.ci]\nurl = "https://ci.example"\nsecret = "0123456789abcdef"\n'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.py").write_text("")
    (tmp_path / "no.pem").write_text("no key")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[registry.principals]\nada = "ed25519:AAAA"\n',
            ["`registry.principals.ada`", ":2:1", "no Ed25519 public key"],
        ),
        ('[registry]\nprincipals = { ada = "no.pem" }\n', ["`registry.principals.ada`", ":2:16", "no.pem"]),
        ('[registry.principals]\nada = "gone.pem"\n', ["`registry.principals.ada`", ":2:1", "gone.pem"]),
        ('[registry.signing]\ntrusted_keys = ["no.pem"]\n', ["`registry.signing.trusted_keys`", ":2:1"]),
        ('[registry.signing]\nprivate_key = "gone.pem"\n', ["`registry.signing.private_key`", ":2:1", "gone.pem"]),
        ('[registry]\ndatabase_url = "mysql://x/y"\n', ["`registry.database_url`", ":2:1"]),
        (
            f'{_HOOK}events = ["alias.promotd"]\n',
            ["`webhooks.ci.events`", ":4:1", "no kind of event", "Did you mean `alias.promoted`?"],
        ),
        (f'{_HOOK}ca_file = "no.pem"\n', ["`webhooks.ci.ca_file`", ":4:1", "no.pem"]),
        (
            '[endpoints.digits]\nmodel = "digits@champion"\n  format = "onxx"\n',
            ["`endpoints.digits.format`", ":3:3", "Did you mean `onnx`?"],
        ),
        (
            '[endpoints.x]\nmodel = "d@x"\n[endpoints.x.arms.a]\nmodel = "d@a"\nshare = 0\nformat = "onxx"',
            ["`endpoints.x.arms.a.format`", ":6:1", "Did you mean `onnx`?"],
        ),
        ('[endpoints.digits]\nmodel = "digits/1"\nformat = "pickle"\n', ["`endpoints.digits.format`", "never served"]),
        ('[recipes.digits]\npath = "recip.py:make"\n', ["`recipes.digits.path`", ":2:1", "Did you mean `recipe.py`?"]),
        ('[sweeps.rates]\nrecipe = "recip.py"\n', ["`sweeps.rates.recipe`", ":2:1", "Did you mean `recipe.py`?"]),
        (
            '[recipes.digits]\npath = "recipe.py"\n[sweeps.rates]\nrecipe = "digts"\n',
            ["`sweeps.rates.recipe`", ":4:1", "Did you mean `digits`?"],
        ),
        ("[sweeps.rates]\ntrials = 3\n", ["`sweeps.rates`", ":2:1", "no such recipe", "`rates`"]),
        ('[serving]\nhost = "0.0.0.0"\n', ["`0.0.0.0`", ":2:1", "noa api-keys new"]),
        ('[serving]\nkeys_file = "no.pem"\n', ["`serving.keys_file`", ":2:1", "not readable"]),
        ('[gates.digits]\ncheck = "policy.py:check"\n', ["`gates.digits.check`", ":2:1", "policy.py"]),
    ],
)
def test_what_is_named_and_not_there_is_found_with_its_place(
    text: str, words: list[str], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "noa.toml").write_text(text)
    assert run(["config", "validate"]) == 1
    told = capfd.readouterr().err
    for word in [str(project / "noa.toml"), *words]:
        assert word in told
    assert run(["doctor", "--json"]) == 1
    problems = [one["detail"] for one in json.loads(capfd.readouterr().out) if one["state"] == "problem"]
    assert any(word in problem for problem in problems for word in words)


def test_one_key_of_two_principals_is_found(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    public = new_key_pair("ada", project).public
    (project / "noa.toml").write_text(f'[registry.principals]\nada = "{public}"\nbob = "{public}"\n')
    assert run(["config", "validate"]) == 1
    told = capfd.readouterr().err
    assert "`ada` and `bob` have the same key" in told
    assert "noa.toml:3:1" in told


def test_models_that_nobody_knows_are_warnings(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    public = new_key_pair("ada", project).public
    text = f'[registry.principals]\nada = "{public}"\n[recipes.digits]\npath = "recipe.py"\n'
    text += f'{_HOOK}models = ["digts", "digits"]\nevents = ["alias.*"]\n[endpoints.x]\nmodel = "digis@champion"\n'
    (project / "noa.toml").write_text(text)
    assert run(["config", "validate", "--json"]) == 0
    warnings = json.loads(capfd.readouterr().out)["warnings"]
    assert len(warnings) == 2
    for warning, word in zip(warnings, ("[endpoints.x] serves", "[webhooks.ci] waits for"), strict=True):
        assert word in warning
        assert "Did you mean `digits`?" in warning


def test_two_services_on_one_port_are_a_warning(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "validate", "-o", "flows.port=4300", "-o", "tracking.port=4300"]) == 0
    assert "warning: `flows.port` and `tracking.port` are the same port 4300" in capfd.readouterr().out
