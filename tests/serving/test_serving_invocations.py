"""MLflow's scoring protocol, with MLflow's own client and as raw requests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from http_kit import serving_http
from serving_kit import Project, ask, build_app

from noa_serving._asgi import AsgiApplication

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
FRAME = pd.DataFrame(X, columns=["a", "b", "c", "d"])
PREDICTIONS = {"y": (X * 3).tolist(), "total": [30.0, 78.0]}


@pytest.mark.filterwarnings("default")  # MLflow warns of its own insides when it is imported
def test_mlflows_own_client_scores_frames_and_arrays(content: Project) -> None:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    app = build_app(content.settings, digits="digits@champion")
    with serving_http(app) as url:
        host, port = url.removeprefix("http://").split(":")
        client = ScoringServerClient(host, port)
        client.wait_server_ready()
        assert client.get_version()
        assert client.invoke(FRAME)["predictions"] == PREDICTIONS
        assert client.invoke(X)["predictions"] == PREDICTIONS
        with pytest.raises(Exception, match="wrong shape"):
            client.invoke(FRAME[["a", "b"]])


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": FRAME.to_dict(orient="split")},
        {"dataframe_split": {"columns": ["x"], "data": [[row] for row in X.tolist()]}},
        {"dataframe_records": FRAME.to_dict(orient="records")},
        {"dataframe_records": [{"x": row} for row in X.tolist()]},
        {"inputs": X.tolist()},
        {"inputs": {"x": X.tolist()}, "params": {}},
        {"instances": [{"x": row} for row in X.tolist()]},
    ],
    ids=["split", "split cells", "records", "record cells", "inputs", "named inputs", "instances"],
)
def test_every_form_gives_the_same_predictions(app: AsgiApplication, body: object) -> None:
    assert ask(app, "POST", "/invocations/digits", body).json == {"predictions": PREDICTIONS}


def test_columns_of_several_inputs_go_by_name(app: AsgiApplication) -> None:
    rows = [
        {"flag": True, "index": 1, "pixels": [[1, 2], [3, 4]]},
        {"pixels": [[0, 0], [0, 0]], "index": 0, "flag": False},
    ]
    found = ask(app, "POST", "/invocations/mixed", {"dataframe_records": rows}).json["predictions"]
    assert found["picked"] == [20.0, 10.0]
    assert found["not_flag"] == [False, True]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "exactly one of"),
        ({"inputs": X.tolist(), "instances": []}, "exactly one of"),
        ({"inputs": X.tolist(), "params": {"top": 3}}, "take no `params`"),
        ({"dataframe_split": []}, "malformed"),
        ({"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}, "row 0 of `dataframe_split`"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, "stands twice"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": []}}, "no rows"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, None]]}}, "null"),
        ({"dataframe_split": {"columns": [["x"]], "data": [[1]]}}, "wrong shape"),
        ({"dataframe_records": [{"a": 1}, {"b": 2}]}, "row 1 of `dataframe_records`"),
        ({"dataframe_records": {}}, "no list"),
        ({"dataframe_records": [{}]}, "row 0"),
        ({"dataframe_records": [{"x": 1}]}, "columns have no values"),
    ],
)
def test_bad_scoring_requests_are_refused_with_the_reason(app: AsgiApplication, body: object, text: str) -> None:
    answer = ask(app, "POST", "/invocations/digits", body)
    assert answer.status == 400, answer.body
    assert text in answer.error


def test_without_a_name_there_must_be_one_endpoint(app: AsgiApplication) -> None:
    answer = ask(app, "POST", "/invocations", {"inputs": X.tolist()})
    assert (answer.status, "`/invocations/digits`" in answer.error) == (404, True)
    assert ask(app, "GET", "/ping").status == 503  # `absent` waits
