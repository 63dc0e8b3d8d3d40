"""`POST /predict/...`: what is accepted, and that what is not is refused with a text that helps."""

from __future__ import annotations

import pytest
from serving_kit import ask

from noa_serving._asgi import AsgiApplication

ROW = [1.0, 2.0, 3.0, 4.0]


def test_named_fields_with_a_batch_axis(app: AsgiApplication) -> None:
    answer = ask(app, "POST", "/predict/digits", {"inputs": {"x": [ROW, ROW]}})
    assert answer.status == 200
    assert answer.json["outputs"] == {"y": [[3.0, 6.0, 9.0, 12.0]] * 2, "total": [30.0, 30.0]}


def test_one_input_needs_no_name(app: AsgiApplication) -> None:
    assert ask(app, "POST", "/predict/digits", {"inputs": [ROW]}).json["outputs"]["total"] == [30.0]


def test_one_item_without_batch_axis_is_answered_without_it(app: AsgiApplication) -> None:
    assert ask(app, "POST", "/predict/digits", {"inputs": ROW}).json["outputs"] == {
        "y": [3.0, 6.0, 9.0, 12.0],
        "total": 30.0,
    }


def test_rows_of_named_fields(app: AsgiApplication) -> None:
    rows = [
        {"pixels": [[1, 2], [3, 4]], "index": 2, "flag": True},
        {"pixels": [[5, 6], [7, 8]], "index": 0, "flag": False},
    ]
    assert ask(app, "POST", "/predict/mixed", {"instances": rows}).json["outputs"] == {
        "half": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        "picked": [30.0, 10.0],
        "not_flag": [False, True],
    }


def test_one_item_of_several_named_fields(app: AsgiApplication) -> None:
    body = {"inputs": {"pixels": [[1, 2], [3, 4]], "index": 1, "flag": False}, "outputs": ["picked"]}
    assert ask(app, "POST", "/predict/mixed", body).json["outputs"] == {"picked": 20.0}


def test_the_answer_names_the_version_that_computed_it(app: AsgiApplication) -> None:
    for path, version in (("/predict/digits", 2), ("/predict/first", 1)):
        answer = ask(app, "POST", path, {"inputs": [ROW]})
        assert (answer.json["model"], answer.json["version"]) == ("digits", version)
        assert str(answer.json["digest"]).startswith("sha256:")
        assert answer.headers["noa-version"] == str(version)
        assert answer.headers["noa-digest"] == answer.json["digest"]


def test_output_filter_keeps_the_order_asked_for(app: AsgiApplication) -> None:
    outputs = ask(app, "POST", "/predict/digits", {"inputs": [ROW], "outputs": ["total"]}).json["outputs"]
    assert list(outputs) == ["total"]


MIXED = {"pixels": [[[1, 2], [3, 4]]], "index": [1], "flag": [True]}

REFUSED: list[tuple[str, str, object, tuple[str, ...]]] = [
    ("wrong shape", "digits", {"inputs": [[1, 2, 3]]}, ("`x`", "(batch=1, 4)", "(1, 3)")),
    ("text", "digits", {"inputs": {"x": [["a", 2, 3, 4]]}}, ("`x`", "float32", "text")),
    ("number as text", "digits", {"inputs": {"x": [["1", 2, 3, 4]]}}, ("`x`", "float32", "text")),
    ("null", "digits", {"inputs": {"x": [[None, 2, 3, 4]]}}, ("`x`", "null")),
    ("booleans as numbers", "digits", {"inputs": {"x": [[True, 2, 3, 4]]}}, ("`x`", "true/false")),
    ("object", "digits", {"inputs": {"x": [[{}, 2, 3, 4]]}}, ("`x`", "an object")),
    ("ragged", "digits", {"inputs": {"x": [[1, 2, 3, 4], [1, 2]]}}, ("`x`", "ragged")),
    ("ragged depth", "digits", {"inputs": {"x": [[1, 2, 3, 4], 1]}}, ("`x`", "ragged")),
    ("too deep", "digits", {"inputs": {"x": [[[[1, 2, 3, 4]]]]}}, ("`x`", "(1, 1, 1, 4)")),
    ("float32 overflow", "digits", {"inputs": {"x": [[1e39, 2, 3, 4]]}}, ("`x`", "out of range")),
    ("float in int", "mixed", {"inputs": {**MIXED, "index": [1.5]}}, ("`index`", "int64", "decimal point")),
    ("uint8 overflow", "mixed", {"inputs": {**MIXED, "pixels": [[[300, 2], [3, 4]]]}}, ("`pixels`", "0 to 255")),
    ("negative in uint8", "mixed", {"inputs": {**MIXED, "pixels": [[[-1, 2], [3, 4]]]}}, ("`pixels`", "out of range")),
    ("number in bool", "mixed", {"inputs": {**MIXED, "flag": [1]}}, ("`flag`", "bool", "a number")),
    ("missing field", "mixed", {"inputs": {"index": [1], "flag": [True]}}, ("`pixels`", "missing")),
    ("unknown field", "digits", {"inputs": {"x": [ROW], "z": [ROW]}}, ("`z`", "not known", "`x`")),
    ("unnamed fields", "mixed", {"inputs": [[1]]}, ("`pixels`", "`index`", "a list")),
    ("unequal batches", "mixed", {"inputs": {**MIXED, "index": [1, 2]}}, ("`index`", "batch=1", "(2,)")),
    ("both", "digits", {"inputs": [ROW], "instances": [ROW]}, ("`inputs` or `instances`", "both")),
    ("neither", "digits", {"outputs": ["y"]}, ("`inputs` or `instances`", "neither")),
    (
        "unknown key",
        "digits",
        {"input": [ROW]},
        ("`input`", "not known", "`outputs`, names of outputs, may be beside it"),
    ),
    ("unknown output", "digits", {"inputs": [ROW], "outputs": ["z"]}, ("`z`", "`y`", "`total`")),
    ("output twice", "digits", {"inputs": [ROW], "outputs": ["y", "y"]}, ("`y`", "twice")),
    ("outputs no list", "digits", {"inputs": [ROW], "outputs": "y"}, ("`outputs`",)),
    ("row lacks field", "mixed", {"instances": [{"index": 1, "flag": True}]}, ("`pixels`", "row 0")),
    ("row has more", "digits", {"instances": [{"x": ROW, "q": 1}]}, ("`q`", "not known")),
    ("no rows", "digits", {"instances": []}, ("`instances`", "no rows")),
    ("empty batch", "digits", {"inputs": {"x": []}}, ("`x`",)),
    ("a list", "digits", [1], ("a JSON object", "a list")),
]


@pytest.mark.parametrize(("name", "body", "texts"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_input_is_refused_naming_field_and_difference(
    app: AsgiApplication, name: str, body: object, texts: tuple[str, ...]
) -> None:
    answer = ask(app, "POST", f"/predict/{name}", body)
    assert answer.status == 400, answer.body
    assert [text for text in texts if text not in answer.error] == [], answer.error


RAW: list[tuple[str, bytes, int, str]] = [
    ("no body", b"", 400, "no body"),
    ("not JSON", b"{", 400, "not valid JSON"),
    ("NaN", b'{"inputs": [[NaN, 1, 2, 3]]}', 400, "not valid JSON"),
    ("Infinity", b'{"inputs": [[Infinity, 1, 2, 3]]}', 400, "not valid JSON"),
    ("1e400", b'{"inputs": [[1e400, 1, 2, 3]]}', 400, "not valid JSON"),
    ("deep nesting", b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "not valid JSON"),
    ("depth below the parser's", b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "nested too deeply"),
    ("field twice", b'{"inputs": {"x": [[1,2,3,4]], "x": [[5,6,7,8]]}}', 400, "`x` stands twice"),
    ("field twice, hidden", b'{"inputs": {"x": [[1,2,3,4]], "\\u0078": [[5,6,7,8]]}}', 400, "`x` stands twice"),
    ("inputs twice", b'{"inputs": [[1,2,3,4]], "inputs": [[5,6,7,8]]}', 400, "`inputs` stands twice"),
    ("outputs twice", b'{"inputs": [[1,2,3,4]], "outputs": ["y"], "outputs": []}', 400, "`outputs` stands twice"),
    ("field of a row twice", b'{"instances": [{"x": [1,2,3,4], "x": [1,2,3,4]}]}', 400, "`x` stands twice"),
    ("not UTF-8", b'{"inputs": "\xff"}', 400, "not valid JSON"),
]


@pytest.mark.parametrize(("body", "status", "text"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
def test_malformed_json_is_refused(app: AsgiApplication, body: bytes, status: int, text: str) -> None:
    answer = ask(app, "POST", "/predict/digits", body, {"content-type": "application/json"})
    assert (answer.status, text in answer.error) == (status, True), answer.error


def test_another_content_type_is_refused_with_the_remedy(app: AsgiApplication) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream"):
        answer = ask(app, "POST", "/predict/digits", b'{"inputs": [[1,2,3,4]]}', {"content-type": kind})
        assert answer.status == 415
        assert "application/json" in answer.error
    assert ask(app, "POST", "/predict/digits", b"{}", {"content-encoding": "gzip"}).status == 415


def test_values_that_the_model_refuses_are_the_callers_fault_and_leak_nothing(app: AsgiApplication) -> None:
    answer = ask(app, "POST", "/predict/mixed", {"inputs": {**MIXED, "index": [99]}})
    assert answer.status == 400
    assert "onnx" not in answer.error
    assert "/" not in answer.error


def test_an_endpoint_without_a_version_says_what_it_waits_for(app: AsgiApplication) -> None:
    answer = ask(app, "POST", "/predict/absent", {"inputs": [ROW]})
    assert answer.status == 503
    assert "`digits@nobody` points to no version yet" in answer.error
    assert int(answer.headers["retry-after"]) >= 1


def test_unknown_routes_are_404_and_wrong_methods_405(app: AsgiApplication) -> None:
    assert "`/predict/digits`" in ask(app, "POST", "/predict/nobody", {}).error
    assert ask(app, "POST", "/predict", {"inputs": [ROW]}).status == 404
    assert ask(app, "GET", "/nothing").status == 404
    assert ask(app, "GET", "/predict/digits").status == 405
    assert ask(app, "POST", "/metrics", {}).status == 405
