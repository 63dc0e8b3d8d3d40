"""Settings: layers, origins, strictness, and messages that name the place."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from noa.database_urls import MASK, mask_web_address
from noa.errors import NotFoundError, SettingsError
from noa.settings import Settings, explain, is_loopback, json_schema, list_values, load_settings
from noa.settings.serving import ServingSettings

Write = Callable[[str], Path]


@pytest.fixture
def project(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        (tmp_path / "noa.toml").write_text(text)
        return tmp_path

    return write


def test_layers_override_each_other_from_low_to_high(project: Write, tmp_path: Path) -> None:
    root = project("[serving]\nport = 2\n[profiles.prod.serving]\nport = 3\n")
    user = tmp_path / "user.toml"
    user.write_text("[serving]\nport = 1\nworkers = 7\n")
    extra = tmp_path / "extra.toml"
    extra.write_text("[serving]\nport = 4\n")

    def port(**layers: object) -> int:
        return load_settings(root, **layers).settings.serving.port  # pyright: ignore[reportArgumentType]  # layers vary

    assert load_settings(Path("/")).settings.serving.port == 3000
    assert port(user_file=user) == 2
    assert port(user_file=user, profile="prod") == 3
    assert port(user_file=user, profile="prod", config_files=[extra]) == 4
    environ = {"NOA__SERVING__PORT": "5"}
    assert port(user_file=user, profile="prod", config_files=[extra], environ=environ) == 5
    assert port(user_file=user, config_files=[extra], environ=environ, overrides=["serving.port=6"]) == 6
    assert load_settings(root, user_file=user).settings.serving.workers == 7


def test_the_environment_and_the_users_file_are_read_unless_they_are_given(
    project: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project("[serving]\nthreads = 2\n")
    (tmp_path / "home" / "noa").mkdir(parents=True)
    (tmp_path / "home" / "noa" / "noa.toml").write_text("[serving]\nworkers = 7\nthreads = 7\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NOA__SERVING__PORT", "5")
    monkeypatch.setenv("NOA__FLOWS__PORT", "6")

    def read(**layers: object) -> tuple[int, int, int, int]:
        settings = load_settings(root, **layers).settings  # pyright: ignore[reportArgumentType]  # layers vary
        return settings.serving.port, settings.flows.port, settings.serving.workers, settings.serving.threads

    assert read() == (5, 6, 7, 2)
    assert read(environ={}) == (3000, 4200, 7, 2)
    assert read(outside=("flows.port",)) == (3000, 6, 1, 2)
    monkeypatch.setenv("NOA__SERVING__NOTHING", "1")
    assert read(outside=()) == (3000, 4200, 1, 2)
    with pytest.raises(SettingsError, match="NOA__SERVING__NOTHING"):
        read()


def test_origin_names_file_and_line(project: Write) -> None:
    root = project('[project]\nname = "x"\n\n[serving]\nport = 2\n')
    values = {value.key: value for value in list_values(load_settings(root, environ={"NOA__SERVING__WORKERS": "2"}))}
    assert values["serving.port"].origin == f"{root / 'noa.toml'}:5:1"
    assert values["serving.workers"].origin == "environment NOA__SERVING__WORKERS"
    assert values["serving.host"].origin == "default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serving]\nprot = 1\n", ["unknown setting `serving.prot`", "noa.toml:2", "Did you mean `serving.port`?"]),
        ("[servin]\nport = 1\n", ["unknown setting `servin`", "Did you mean `serving`?"]),
        ("[serving]\nport = \n", ["malformed TOML at line 2, column", "noa.toml:2:"]),
        ("[serving\n", ["malformed TOML", "line 1"]),
        ("a = " + "[" * 100_000, ["nested too deeply"]),
        ("[serving]\ntimeout_s = inf\n", ["serving.timeout_s", "finite"]),
        ('[serving]\nport = "x"\n', ["`serving.port`", "noa.toml:2", "received 'x'"]),
        ("[serving]\nport = 70000\n", ["`serving.port`", "65535"]),
        ('[serving]\napi_keys = ["short"]\n', ["16 characters"]),
        ('[flows]\nhost = "0.0.0.0"\n', ["loopback only"]),
        ('[endpoints.digits]\nmodel = "digits"\n', ["digits@champion"]),
        ('[endpoints."a b"]\nmodel = "digits@champion"\n', ["cannot be a name"]),
        ('[recipes.digits]\npath = "recipe.py"\nbackends = ["tensorflow"]\n', ["recipes.digits.backends"]),
        ("profiles = 3\n", ["`profiles` must be a table"]),
        ("[serving]\nport = true\n", ["`serving.port`", "noa.toml:2", "valid integer", "received True"]),
        ("[serving]\nworkers = 2.0\n", ["`serving.workers`", "noa.toml:2", "valid integer", "received 2.0"]),
        ('[serving]\nport = "80"\n', ["`serving.port`", "valid integer", "received '80'"]),
        ("[serving]\ntimeout_s = true\n", ["`serving.timeout_s`", "valid number", "received True"]),
        ('[serving]\ntimeout_s = "5"\n', ["`serving.timeout_s`", "valid number", "received '5'"]),
        ("[gates.digits]\napprovals = 1.0\n", ["`gates.digits.approvals`", "noa.toml:2", "valid integer"]),
        ("[gates.digits]\ncompatible = 1\n", ["`gates.digits.compatible`", "noa.toml:2", "valid boolean"]),
        ("[gates.digits]\nmin_metrics = { accuracy = true }\n", ["gates.digits.min_metrics.accuracy", "noa.toml:2:17"]),
    ],
)
def test_every_mistake_names_the_place(project: Write, text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(project(text))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"environ": {"NOA__SERVING__PROT": "1"}}, ["NOA__SERVING__PROT", "Did you mean `serving.port`?"]),
        ({"environ": {"NOA__SERVNG": "1"}}, ["unknown setting `servng`"]),
        ({"environ": {"NOA__SERVING__PORT": "x"}}, ["NOA__SERVING__PORT", "valid integer"]),
        ({"environ": {"NOA__SERVING__PORT": "true"}}, ["NOA__SERVING__PORT", "valid integer"]),
        ({"overrides": ["flows.parallel_runs=2.0"]}, ["-o", "flows.parallel_runs", "valid integer"]),
        ({"overrides": ["serving.port"]}, ["-o section.key=value"]),
        ({"overrides": ["serving.port.x=1"]}, ["unknown setting `serving.port.x`"]),
        ({"overrides": ["gates.digits.approvals=0"]}, ["-o", "cannot be changed for one command", "[gates.digits]"]),
        ({"environ": {"NOA__GATES__DIGITS__APPROVALS": "0"}}, ["NOA__GATES__DIGITS__APPROVALS", "for one command"]),
        ({"overrides": ["root=/"]}, ["unknown setting `root`"]),
        ({"profile": "prod"}, ["no profile `prod`"]),
        ({"config_files": [Path("missing.toml")]}, ["no such settings file", "missing.toml"]),
    ],
)
def test_every_layer_is_strict(project: Write, layers: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(project(""), **layers)  # pyright: ignore[reportArgumentType]  # layers vary
    for word in words:
        assert word in str(caught.value)


def test_settings_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(tmp_path)


def test_a_folder_in_the_place_of_the_file_does_not_lead_to_the_parents_project(project: Write) -> None:
    below = project('[project]\nname = "up"\n') / "below"
    (below / "noa.toml").mkdir(parents=True)
    with pytest.raises(SettingsError, match="no regular file"):
        load_settings(below)


def test_the_project_is_found_from_a_folder_below(project: Write) -> None:
    root = project('[project]\nname = "up"\n')
    below = root / "a" / "b"
    below.mkdir(parents=True)
    loaded = load_settings(below)
    assert loaded.settings.project.name == "up"
    assert loaded.settings.state_dir == root / ".noa"
    assert loaded.settings.registry.database_url == f"sqlite:///{root / '.noa' / 'noa.db'}"
    assert loaded.settings.registry.artifact_dir == root / ".noa" / "artifacts"


def test_secrets_are_masked_wherever_settings_are_shown(project: Write) -> None:
    secret = "correct-horse-battery"
    loaded = load_settings(project(f'[serving]\napi_keys = ["{secret}"]\n'))
    assert loaded.settings.serving.api_keys[0].get_secret_value() == secret
    assert secret not in repr(loaded.settings)
    assert secret not in json.dumps([str(value) for value in list_values(loaded)])


def test_of_a_webhooks_address_only_the_place_is_shown(project: Write) -> None:
    text = (
        '[webhooks.ci]\nurl = "https://ci.example.com:8443/services/T0/path-token?token=query-token"\n'
        'secret = "correct-horse-battery"\n[registry]\nartifact_url = "s3://bucket/prefix"\n'
    )
    loaded = load_settings(project(text))
    assert loaded.settings.webhooks["ci"].url.endswith("?token=query-token")
    shown = {value.key: value.value for value in list_values(loaded)}
    assert shown["webhooks.ci.url"] == f"https://ci.example.com:8443/{MASK}"
    assert shown["registry.artifact_url"] == "s3://bucket/prefix"
    for everything in (repr(loaded.settings), str(shown)):
        assert "path-token" not in everything
        assert "query-token" not in everything
    with pytest.raises(SettingsError) as caught:
        load_settings(project(text.replace('url = "https', 'url = ["https').replace('query-token"', 'query-token"]')))
    assert "query-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h", "https://h"),
        ("https://h:1/", "https://h:1"),
        ("https://h?t=1", f"https://h/{MASK}"),
        ("https://user:pass@h/a", f"https://{MASK}@h/{MASK}"),
        ("no address", MASK),
        ("", ""),
    ],
)
def test_web_addresses_are_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert mask_web_address(url) == shown


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_bytes(b'\xef\xbb\xbf[project]\nname = "marked"\n')
    loaded = load_settings(tmp_path)
    assert loaded.settings.project.name == "marked"
    assert loaded.origins["project.name"].endswith(":2:1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"[retention]\ngrace_days = {'9' * 10_000}\n", "malformed TOML"),
        (f"[{'.'.join(['a'] * 20_000)}]\n", "nested too deeply"),
        (f"x = {'[' * 500}{']' * 500}\n", "nested too deeply"),
        (f"x = {'[' * 100_000}\n", "nested too deeply"),
        (f"#{'x' * (1 << 20)}\n", "at most 1048576 bytes"),
    ],
)
def test_files_that_would_exhaust_something_are_refused_in_words(project: Write, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(project(text))


@pytest.mark.parametrize("pair", [f"{'a.' * 20_000}a=1", f"a={'[' * 100_000}", f"a={'[' * 500}{']' * 500}"])
def test_an_override_that_is_nested_too_deeply_is_refused_in_words(tmp_path: Path, pair: str) -> None:
    with pytest.raises(SettingsError, match="nested too deeply") as caught:
        load_settings(tmp_path, overrides=[pair])
    assert len(str(caught.value)) < 500


def test_a_large_file_of_many_keys_is_read_in_seconds(project: Write) -> None:
    text = "".join(f"[gates.m{index}]\nmin_metrics = {{ accuracy = 0.5 }}\n" for index in range(15_000))
    begun = time.perf_counter()
    loaded = load_settings(project(text))
    assert time.perf_counter() - begun < 30
    assert loaded.origins["gates.m7.min_metrics.accuracy"].endswith(":16:17")


def test_the_origins_of_many_keys_are_found_in_linear_time(project: Write) -> None:
    """Looked for one by one among all others, those of 5,000 endpoints take twenty times as long as of 1,000."""

    def seconds(number: int) -> float:
        text = "".join(f'[endpoints.e{index}]\nmodel = "m@champion"\n' for index in range(number))
        loaded = load_settings(project(text))
        begun = time.process_time()
        values = list_values(loaded)
        took = time.process_time() - begun
        shown = {value.key: value.origin for value in values}
        assert shown[f"endpoints.e{number - 1}.model"].endswith(f":{2 * number}:1")
        assert shown[f"endpoints.e{number - 1}.format"] == shown["serving.port"] == "default"
        return took

    small, large = seconds(1_000), seconds(5_000)
    assert large < 12 * small + 0.5


def test_a_secret_that_is_not_set_is_shown_as_not_set(project: Write) -> None:
    text = '[registry]\nartifact_url = "s3://bucket/prefix"\n'
    shown = {value.key: value.value for value in list_values(load_settings(project(text)))}
    assert shown["registry.s3.access_key"] == shown["registry.s3.secret_key"] == ""
    assert shown["serving.api_keys"] == []
    assert shown["registry.signing.private_key_pem"] is None
    text += '[registry.s3]\naccess_key = "some"\nsecret_key = "other"\n'
    shown = {value.key: value.value for value in list_values(load_settings(project(text)))}
    assert shown["registry.s3.access_key"] == shown["registry.s3.secret_key"] == MASK
    assert explain("registry.s3.access_key").default == ""


def test_a_wrong_secret_is_not_echoed(project: Write) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(project('[serving]\napi_keys = ["tiny-secret"]\n'))
    assert "tiny-secret" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().serving.port = 1  # pyright: ignore[reportAttributeAccessIssue]  # the point of the test


def test_explain_knows_every_key_and_no_other() -> None:
    for value in list_values(load_settings(Path("/"))):
        found = explain(value.key)
        assert found.description, f"`{value.key}` has no description"
    with pytest.raises(NotFoundError):
        explain("serving.nothing")
    assert "port" in explain("serving").keys


def test_a_table_of_sections_within_another_is_read_and_explained(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text(
        '[endpoints.a]\nmodel = "a@champion"\n[endpoints.a.arms.b]\nmodel = "a@candidate"\nshare = 0.5\n'
        'mode = "shadow"\n[endpoints.a.arms.b.verdict]\ncompare = { scores = "argmax" }\n'
    )
    arm = load_settings(tmp_path).settings.endpoints["a"].arms["b"]
    assert arm.verdict.compare == {"scores": "argmax"}
    assert explain("endpoints.a.arms.b").key == "endpoints.a.arms.b"
    assert "shadow" in explain("endpoints.a.arms.b.mode").description
    assert explain("endpoints.a.arms.b.verdict.error").default == 0.01


def test_the_schema_covers_every_section() -> None:
    properties = json_schema()["properties"]
    assert isinstance(properties, dict)
    assert set(properties) == set(Settings.model_fields) - {"root"} | {"profiles"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_told_from_the_world(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_names_may_hold_dots(project: Write) -> None:
    root = project(
        '[gates."my.model"]\nmin_metrics = { accuracy = 0.5 }\n[endpoints."a.b"]\nmodel = "my.model@champion"\n'
    )
    settings = load_settings(root).settings
    assert settings.gates["my.model"].min_metrics == {"accuracy": 0.5}
    assert settings.endpoints["a.b"].format == "onnx"


def test_a_public_host_with_a_key_is_allowed() -> None:
    assert ServingSettings.model_validate({"host": "0.0.0.0", "api_keys": ["0123456789abcdef"]}).host == "0.0.0.0"


def test_a_whole_number_is_a_number_of_seconds_too(project: Write) -> None:
    loaded = load_settings(project("[serving]\ntimeout_s = 5\n"), environ={"NOA__FLOWS__STOP_TIMEOUT_S": "3"})
    assert loaded.settings.serving.timeout_s == 5.0
    assert loaded.settings.flows.stop_timeout_s == 3.0


def test_types_are_told_as_people_write_them() -> None:
    assert explain("serving.port").type == "int"
    assert explain("gates.digits.min_metrics").type == "dict[str, float]"
    assert explain("gates.digits.confidence").type == "float | None"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe at whose other end nobody is: whoever opens it as a file waits for ever."""
    path = tmp_path / "pipe.py"
    os.mkfifo(path)
    return path


def test_a_named_pipe_in_the_place_of_a_settings_file_is_refused_at_once(
    project: Write, tmp_path: Path, pipe: Path
) -> None:
    root = project("")
    for layers in ({"config_files": [pipe]}, {"user_file": pipe}):
        with pytest.raises(SettingsError, match=r"`pipe.py` is a pipe .*/pipe.py\); expected a regular file"):
            load_settings(root, **layers)  # pyright: ignore[reportArgumentType]  # layers vary
    for other, kind in ((tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(SettingsError, match=f"is {kind}"):
            load_settings(root, config_files=[other])
    pipe.rename(root / "noa.toml")
    with pytest.raises(SettingsError, match="no regular file"):
        load_settings(root)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('[registry.signing]\nprivate_key = "pipe.py"\n', "registry.signing.private_key", 2),
        ('[registry.signing]\n\ntrusted_keys = ["pipe.py"]\n', "registry.signing.trusted_keys", 3),
        ('[registry]\nledger_anchor = "pipe.py"\n', "registry.ledger_anchor", 2),
        ('[registry.principals]\nada = "pipe.py"\n', "registry.principals.ada", 2),
        (
            '[webhooks.ci]\nurl = "https://ci.test/"\nsecret = "of-twenty-letters-at-least"\nca_file = "pipe.py"\n',
            "webhooks.ci.ca_file",
            4,
        ),
        ('[gates.digits]\ncheck = "pipe.py:judge"\n', "gates.digits.check", 2),
    ],
)
def test_a_setting_that_names_a_pipe_is_refused_with_its_place(
    project: Write, pipe: Path, text: str, key: str, line: int
) -> None:
    root = project(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(root)
    assert f"setting `{key}` names a pipe ({root}/noa.toml:{line}:1); expected a regular file; received {pipe}" == str(
        caught.value
    )
    pipe.unlink()
    load_settings(root)  # what is not there yet is told by whoever needs it
