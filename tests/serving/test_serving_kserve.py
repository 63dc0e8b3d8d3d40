"""KServe's public Python client, as it is published, against a real server: REST and gRPC, with a key.

It is locked in `kserve_client.txt` and installed into an environment of its own by `scripts/set_up_kserve.py`, which
`make test` runs first: KServe asks for an older psutil and pandas than noa has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_kit import affine_model, endpoint, make_project, mixed_model

from noa.settings import Settings
from noa_serving import start_server
from noa_serving.api_keys import KeyFile

ROOT = Path(__file__).resolve().parents[2]
X = np.array([[1, 2, 3, 4], [0.1, -0.5, 1e30, 3.5]], dtype=np.float32)
Y = (X * np.float32(3)).tolist()
TOTAL = (X * np.float32(3)).sum(axis=1).tolist()
HALF = np.arange(8).astype(np.float16).reshape(2, 2, 2).tolist()


@pytest.fixture(scope="module")
def python() -> str:
    script = ROOT / "scripts" / "set_up_kserve.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kserves_client_works_unmodified_over_rest_and_grpc(python: str, tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path, empty_state)
    project.publish("digits", affine_model(3.0))
    project.publish("mixed", mixed_model)
    key = KeyFile(project.settings.serving.keys_file).add("kserve", now=datetime.now(UTC))[1]
    table = project.settings.model_dump()
    settings = Settings.model_validate({**table, "serving": {**table["serving"], "grpc_port": 0}})
    rules = {name: endpoint(f"{name}@champion") for name in ("digits", "mixed")}
    with start_server(settings, endpoints=rules, log_file=tmp_path / "log") as server:
        address = server.wait_ready()
        calls = [python, str(Path(__file__).with_name("kserve_calls.py")), address.url, str(address.grpc_target), key]
        run = subprocess.run(calls, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    is_right_over_rest(found["rest"])
    is_right_over_grpc(found["grpc"])


def is_right_over_rest(found: dict[str, Any]) -> None:
    assert (found["live"], found["ready"], found["model_ready"], found["other_ready"]) == (True, True, True, False)
    for way, kind in (("json", "application/json"), ("binary", "application/octet-stream")):
        whole, only = found[f"{way} digits None"], found[f"{way} digits ['total']"]
        assert (whole["model"], whole["id"]) == ("digits", "call-7")  # this client drops the version of REST
        assert whole["outputs"] == {"y": ["FP32", Y], "total": ["FP32", TOTAL]}
        assert only["outputs"] == {"total": ["FP32", TOTAL]}
        assert found[f"{way} digits ['total'] type"].startswith(kind)
        is_right_mixed(found[f"{way} mixed None"])
    assert found["table"] == [30.0]
    assert found["unknown"][0] == 404
    assert "`other`" in found["unknown"][1]
    assert found["no key"][0] == 401
    assert found["wrong name"][0] == 400
    assert "`z`" in found["wrong name"][1]


def is_right_over_grpc(found: dict[str, Any]) -> None:
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    for way in ("typed", "raw"):
        whole = found[f"{way} digits"]
        assert (whole["model"], whole["version"], whole["id"]) == ("digits", "1", "call-7")
        assert whole["outputs"] == {"y": ["FP32", Y], "total": ["FP32", TOTAL]}
        is_right_mixed(found[f"{way} mixed"])
    assert found["unknown"][0] == "NOT_FOUND"
    assert found["no key"][0] == "UNAUTHENTICATED"
    assert found["wrong name"][0] == "INVALID_ARGUMENT"


def is_right_mixed(found: dict[str, Any]) -> None:
    outputs = found["outputs"]
    assert outputs["half"] == ["FP16", HALF]
    assert outputs["picked"] == ["FP32", [10.0, 30.0]]
    assert outputs["not_flag"] == ["BOOL", [False, True]]
