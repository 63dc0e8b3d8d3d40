"""`noa api-keys` as a person at a terminal uses it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from noa_cli.__main__ import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "noa.toml").write_text('[project]\nname = "mine"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noa(capfd: Capture, *arguments: str, code: int = 0) -> tuple[str, str]:
    assert run(["api-keys", *arguments]) == code
    return capfd.readouterr()


def test_a_key_is_printed_once_listed_without_it_and_revoked(project: Path, capfd: Capture) -> None:
    out, err = noa(capfd, "new", "shop", "-e", "digits", "-e", "shop-*", "--expires", "90d")
    key = out.strip()
    assert key.startswith("noa_")
    assert key not in err
    file = project / ".noa" / "api-keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed, _ = noa(capfd, "list", "--json")
    assert key not in listed
    row = json.loads(listed)[0]
    assert (row["name"], row["endpoints"], row["verbs"]) == ("shop", ["digits", "shop-*"], ["infer", "read"])
    assert key.split("_")[1] == row["id"]
    assert f"revoked {row['id']}" in noa(capfd, "revoke", "shop")[0]
    assert "no key `shop`" in noa(capfd, "revoke", "shop", code=1)[1]
    assert json.loads(noa(capfd, "list", "--json")[0])[0]["revoked"] is not None


@pytest.mark.parametrize("wrong", [["--verb", "write"], ["-e", "a/b"], ["--expires", "soon"]])
def test_a_wrong_scope_makes_no_key(project: Path, capfd: Capture, wrong: list[str]) -> None:
    assert "error" in noa(capfd, "new", "shop", *wrong, code=1)[1]
    assert not (project / ".noa" / "api-keys.json").exists()


def test_a_key_s_quota_is_listed_changed_and_taken_back(project: Path, capfd: Capture) -> None:
    noa(capfd, "new", "shop", "--rate", "50", "--burst", "100")
    noa(capfd, "new", "free")
    listed, _ = noa(capfd, "list")
    assert "50 requests/s, 100 at once" in " ".join(listed.split())
    rows = json.loads(noa(capfd, "list", "--json")[0])
    quota = {"requests_per_s": 50.0, "burst_requests": 100, "bytes_per_s": None, "burst_bytes": None}
    assert [row["quota"] for row in rows] == [quota, None]
    out, _ = noa(capfd, "limit", rows[0]["id"], "--rate", "0.5", "--byte-rate", "1000000", "--byte-burst", "5000000")
    assert "0.5 requests/s; 1000000 bytes/s, 5000000 at once" in out
    noa(capfd, "limit", "shop", "--none")
    assert [row["quota"] for row in json.loads(noa(capfd, "list", "--json")[0])] == [None, None]


@pytest.mark.parametrize(
    "wrong",
    [[], ["--burst", "5"], ["--rate", "0"], ["--rate", "nan"], ["--rate", "5", "--none"], ["--byte-rate", "-1"]],
)
def test_a_wrong_quota_changes_nothing(project: Path, capfd: Capture, wrong: list[str]) -> None:
    noa(capfd, "new", "shop", "--rate", "50")
    before = (project / ".noa" / "api-keys.json").read_bytes()
    assert "error" in noa(capfd, "limit", "shop", *wrong, code=1)[1]
    assert (project / ".noa" / "api-keys.json").read_bytes() == before
