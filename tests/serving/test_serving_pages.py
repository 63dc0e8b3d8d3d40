"""What people and programs read: index, status, metrics, OpenAPI and the docs page."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from serving_kit import ask

import noa_serving
from noa.settings import EndpointSettings, ServingSettings
from noa_serving._application import Application, compute_threads
from noa_serving._asgi import AsgiApplication
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._openapi import _element


def test_the_openapi_examples_are_requests_that_work(app: AsgiApplication) -> None:
    document = ask(app, "GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    for path in ("/predict/digits", "/predict/mixed"):
        media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        answer = ask(app, "POST", path, media["example"])
        assert answer.status == 200, answer.body
        assert set(media["schema"]["properties"]) == {"inputs", "instances", "outputs"}


def test_the_openapi_schema_says_dtypes_and_shapes(app: AsgiApplication) -> None:
    document = ask(app, "GET", "/openapi.json").json
    schema = document["paths"]["/predict/mixed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    pixels = schema["properties"]["inputs"]["anyOf"][0]["properties"]["pixels"]["anyOf"][0]
    assert pixels["description"] == "uint8(batch, 2, 2)"
    assert (pixels["items"]["minItems"], pixels["items"]["maxItems"]) == (2, 2)
    assert pixels["items"]["items"]["items"] == {"type": "integer", "minimum": 0, "maximum": 255}


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int8", -128, 127), ("uint16", 0, 65535), ("int64", -(2**63), 2**63 - 1)]
)
def test_integer_ranges(dtype: str, low: int, high: int) -> None:
    assert _element(dtype) == {"type": "integer", "minimum": low, "maximum": high}


def test_an_endpoint_that_is_not_ready_is_in_the_document_and_on_the_page(app: AsgiApplication) -> None:
    document = ask(app, "GET", "/openapi.json").json
    assert "Not ready" in document["paths"]["/predict/absent"]["post"]["description"]
    assert "absent" in ask(app, "GET", "/docs").body.decode()


def test_the_docs_page_loads_nothing_from_elsewhere(app: AsgiApplication) -> None:
    answer = ask(app, "GET", "/docs")
    text = answer.body.decode()
    assert "uint8(batch, 2, 2)" in text
    assert "curl" in text
    assert "<script" not in text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_index_and_status_show_versions_and_what_is_awaited(app: AsgiApplication) -> None:
    index = ask(app, "GET", "/").json
    assert index["endpoints"]["digits"] == {"model": "digits@champion", "state": "ready", "predict": "/predict/digits"}
    rows = ask(app, "GET", "/status").json["endpoints"]
    assert (rows["digits"]["version"], rows["first"]["version"]) == (2, 1)
    assert rows["absent"]["state"] == "waiting"


def test_metrics_count_requests_by_code_and_name_the_version(app: AsgiApplication) -> None:
    for body in ({"inputs": [[1, 2, 3, 4]]}, {}):
        ask(app, "POST", "/predict/first", body)
    text = ask(app, "GET", "/metrics").body.decode()
    mine = [line for line in text.splitlines() if 'endpoint="first",route="predict"' in line]
    assert any('code="200"} 1' in line for line in mine)
    assert any('code="400"} 1' in line for line in mine)
    assert any(line.startswith("noa_request_seconds_count") and line.endswith(" 2") for line in mine)
    assert 'noa_endpoint_info{endpoint="first"' in text
    assert 'version="1"' in text
    names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in names} <= families


def test_predict_needs_no_name_where_there_is_one_endpoint() -> None:
    one = Endpoint("only", EndpointSettings(model="digits@champion"), threads=1)
    application = Application(ServingSettings(), [one], Follower([one], lambda: None, poll_interval_s=1))
    assert application.find_hot("/predict") is application.find_hot("/predict/only")
    application.close()


def test_threads_are_shared_between_the_workers() -> None:
    assert compute_threads(ServingSettings(threads=3)) == 3
    assert compute_threads(ServingSettings(workers=256)) == 1


def test_the_shop_window_shows_what_it_says_and_loads_no_framework() -> None:
    visible = {name for name in vars(noa_serving) if not name.startswith("_")}
    assert set(noa_serving.__all__) <= visible
    code = (
        "import sys, json, noa_serving\n"
        "heavy = ('bentoml', 'mlflow', 'onnxruntime', 'torch', 'jax', 'sqlalchemy', 'starlette', 'uvicorn')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(result.stdout) == []
