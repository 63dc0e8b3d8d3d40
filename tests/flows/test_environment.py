from __future__ import annotations

from pathlib import Path

import pytest

from noa.settings import load_settings
from noa_flows._environment import carried_settings, inherited_environment, prefect_environment, settings_to_carry

_PROJECT = """
[project]
name = "carried"
[gates.tiny.min_metrics]
accuracy = 0.5
"""


def test_tools_are_not_configured_past_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "NOA__FLOWS__PORT", "NOA_SERVICE_ID"):
        monkeypatch.setenv(name, "somewhere-else")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    environment = inherited_environment()
    assert "somewhere-else" not in environment.values()
    assert "127.0.0.1" in environment["NO_PROXY"]
    assert environment["DO_NOT_TRACK"] == "1"


def test_everything_of_prefect_stays_in_the_state_folder(tmp_path: Path) -> None:
    settings = load_settings(tmp_path).settings
    rendered = prefect_environment(settings, "http://127.0.0.1:1/api")
    for name in ("PREFECT_HOME", "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_UI_STATIC_DIRECTORY"):
        assert str(tmp_path / ".noa") in rendered[name]
    assert rendered["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_flow_sees_the_overrides_of_its_worker_and_later_changes_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "noa.toml"
    file.write_text(_PROJECT)
    started_with = load_settings(tmp_path, overrides=["training.log_every_steps=7"]).settings
    text = settings_to_carry(started_with)
    file.write_text(_PROJECT.replace("0.5", "0.9"))

    later = carried_settings(tmp_path, text)
    assert later.training.log_every_steps == 7
    assert later.gates["tiny"].min_metrics == {"accuracy": 0.9}


def test_gates_of_a_profile_and_names_with_dots_are_carried(tmp_path: Path) -> None:
    text = (
        '[profiles.prod.gates."my.model".min_metrics]\naccuracy = 0.9\n[profiles.prod.endpoints."a.b"]\nmodel = "m/1"\n'
    )
    (tmp_path / "noa.toml").write_text(text)
    settings = load_settings(tmp_path, profile="prod").settings
    later = carried_settings(tmp_path, settings_to_carry(settings))
    assert later.gates["my.model"].min_metrics == {"accuracy": 0.9}
    assert later.endpoints["a.b"].model == "m/1"


def test_a_file_that_only_the_environment_makes_whole_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        '[registry.signing]\nrequired = true\n[serving]\nhost = "0.0.0.0"\n[webhooks.ci]\nurl = "https://ci.example"\n'
    )
    (tmp_path / "noa.toml").write_text(text)
    monkeypatch.setenv("NOA__WEBHOOKS__CI__SECRET", "a-very-secret-key-indeed")
    monkeypatch.setenv("NOA__SERVING__API_KEYS", '["another-very-secret-key"]')
    monkeypatch.setenv("NOA__REGISTRY__SIGNING__PRIVATE_KEY_PEM", "the key itself")
    text = settings_to_carry(load_settings(tmp_path).settings)
    assert "very-secret-key" not in text
    signing = carried_settings(tmp_path, text).registry.signing
    assert signing.required
    assert signing.private_key_pem is not None
    assert signing.private_key_pem.get_secret_value() == "the key itself"


def test_what_was_started_with_is_carried_past_the_users_file_of_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noa.toml").write_text(_PROJECT)
    text = settings_to_carry(load_settings(tmp_path).settings)
    monkeypatch.setenv("NOA__TRAINING__LOG_EVERY_STEPS", "7")
    monkeypatch.setenv("NOA__REGISTRY__DATABASE_URL", "sqlite:////elsewhere.db")
    later = carried_settings(tmp_path, text)
    assert later.training.log_every_steps == 20
    assert later.registry.database_url == f"sqlite:///{tmp_path / '.noa' / 'noa.db'}"


def test_secrets_are_not_carried(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, overrides=['serving.api_keys=["a-very-secret-key-indeed"]']).settings
    assert "a-very-secret" not in settings_to_carry(settings)
    assert carried_settings(tmp_path, settings_to_carry(settings)).serving.api_keys == ()
