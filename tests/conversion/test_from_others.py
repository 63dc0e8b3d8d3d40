"""From other libraries: the graph predicts what the library does, on its own real data; what holds code is refused."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from noa.errors import ConversionError, InvalidInputError, NotFoundError
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion import load_format
from noa_conversion.from_others import convert_library_file, list_sources
from noa_conversion.from_others.proof_onnx import prove

SETTINGS = ConversionSettings()


def _sklearn(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler
    from sklearn.svm import SVC

    scale = ColumnTransformer([("a", StandardScaler(), [0, 1, 2]), ("b", MinMaxScaler(), slice(3, 13))])
    table = {
        "logistic": (make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), load_breast_cancer),
        "forest": (RandomForestClassifier(20, random_state=0), load_digits),
        "boosting": (GradientBoostingClassifier(n_estimators=10, random_state=0), load_iris),
        "columns": (make_pipeline(scale, PCA(5, random_state=0), LogisticRegression(max_iter=500)), load_wine),
        "svm": (make_pipeline(StandardScaler(), SVC(probability=False)), load_iris),
        "neighbours": (KNeighborsClassifier(3), load_iris),
        "network": (make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=400, random_state=0)), load_wine),
        "ridge": (make_pipeline(StandardScaler(), Ridge()), load_diabetes),
        "forest regression": (RandomForestRegressor(10, random_state=0), load_diabetes),
        "transformer": (make_pipeline(StandardScaler(), PCA(4, random_state=0)), load_wine),
    }
    model, data = table[name]
    x, y = data(return_X_y=True)
    x = x.astype(np.float32)
    return model.fit(x, y), x, y


@pytest.mark.parametrize(
    "name", ["logistic", "forest", "boosting", "columns", "svm", "neighbours", "network", "ridge", "transformer"]
)
@pytest.mark.filterwarnings("ignore")  # scikit-learn and skl2onnx warn of each other's versions
def test_scikit_learn_on_its_own_data(name: str, tmp_path: Path) -> None:
    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    model, x, _ = _sklearn(name)
    proof = convert_sklearn(model, tmp_path / "onnx", samples=x[:150])
    assert proof["problem"] is None
    runnable = load_format("onnx", tmp_path / "onnx")
    assert runnable.signature.inputs[0].shape == ("batch", x.shape[1])
    for rows in (1, 7):
        given = runnable.run({"x": x[:rows]})
        if hasattr(model, "predict"):
            answer = given.get("label", given.get("prediction"))
            assert answer is not None
            np.testing.assert_allclose(answer.reshape(-1), model.predict(x[:rows]), rtol=1e-3)
        else:
            np.testing.assert_allclose(given["transformed"], model.transform(x[:rows]), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_columns_by_name_are_refused_with_what_to_do(tmp_path: Path) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    table = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [0.0, 1, 2, 0], "c": ["u", "v", "u", "w"]})
    by_name = ColumnTransformer([("n", StandardScaler(), ["a", "b"]), ("c", OneHotEncoder(), ["c"])])
    model = make_pipeline(by_name, LogisticRegression()).fit(table, [0, 1, 0, 1])
    with pytest.raises(ConversionError, match=r"by their names.*ColumnTransformer\(.*`a`, `b`, `c`.*to_numpy"):
        convert_sklearn(model, tmp_path / "onnx")
    numbers = table[["a", "b"]].to_numpy(dtype="float32")
    by_place = ColumnTransformer([("n", StandardScaler(), [0, 1])])
    model = make_pipeline(by_place, LogisticRegression()).fit(numbers, [0, 1, 0, 1])
    assert convert_sklearn(model, tmp_path / "onnx", samples=numbers)["problem"] is None


@pytest.mark.filterwarnings("ignore")
def test_sparse_bins_are_refused_with_the_encoding_that_works(tmp_path: Path) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KBinsDiscretizer, StandardScaler

    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    data: Any = load_breast_cancer(return_X_y=True)
    x, y = data[0].astype(np.float32), data[1]

    def binned(encode: str) -> Any:
        bins = KBinsDiscretizer(4, encode=encode)
        columns = ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", bins, [3, 4])])
        return make_pipeline(columns, RidgeClassifier()).fit(x, y)

    with pytest.raises(ConversionError, match=r"`KBinsDiscretizer` gives a sparse matrix.*encode='onehot-dense'"):
        convert_sklearn(binned("onehot"), tmp_path / "onnx", samples=x)
    assert convert_sklearn(binned("onehot-dense"), tmp_path / "onnx", samples=x)["problem"] is None


@pytest.mark.filterwarnings("ignore")
def test_labels_that_are_texts_stay_texts(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    x, y = load_iris(return_X_y=True)
    names = np.array(["a", "b", "ü"])[y]
    model = LogisticRegression(max_iter=500).fit(x, names)
    convert_sklearn(model, tmp_path / "onnx", samples=x)
    runnable = load_format("onnx", tmp_path / "onnx")
    assert runnable.signature.outputs[0].describe() == "string(batch)"
    given = runnable.run({"x": x.astype(np.float32)})["label"]
    assert given.tolist() == model.predict(x).tolist()


DOCUMENTS = ["good film", "bad film", "VERY good evening", "sad, bad day", "good", "awful", "fine day", "bad bad"]


@pytest.mark.filterwarnings("ignore")
def test_pipelines_of_texts_become_graphs_of_texts(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(DOCUMENTS, ["good", "bad"] * 4)
    with pytest.raises(ConversionError, match=r"how many features.*if it takes texts, give some as `samples`"):
        convert_sklearn(model, tmp_path / "none")
    with pytest.raises(ConversionError, match="something else than scikit-learn"):
        convert_sklearn(model, tmp_path / "other", samples=np.array(["éevening"]))  # its tokenizer knows ASCII only
    convert_sklearn(model, tmp_path / "onnx", samples=np.array(DOCUMENTS))
    runnable = load_format("onnx", tmp_path / "onnx")
    assert runnable.signature.inputs[0].describe() == "string(batch, 1)"
    unseen = ["GOOD", "nobody knows", ""]
    given = runnable.run({"x": np.array(unseen, dtype=object).reshape(-1, 1)})
    assert given["label"].tolist() == model.predict(unseen).tolist()
    np.testing.assert_allclose(given["probabilities"], model.predict_proba(unseen), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_categories_are_encoded_from_texts(tmp_path: Path) -> None:
    from sklearn.preprocessing import OneHotEncoder

    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    rows = np.array([["red", "S"], ["blue", "L"], ["red", "M"], ["green", "S"]], dtype=object)
    model = OneHotEncoder(handle_unknown="ignore").fit(rows)
    convert_sklearn(model, tmp_path / "onnx", samples=rows)
    given = load_format("onnx", tmp_path / "onnx").run({"x": rows[::-1]})["transformed"]
    assert np.array_equal(given, model.transform(rows[::-1]).toarray())


def _xgboost(objective: str, folder: Path) -> tuple[Path, Any, np.ndarray]:
    import xgboost

    data = {"multi:softprob": load_iris, "multi:softmax": load_iris, "reg:squarederror": load_diabetes}
    x, y = data.get(objective, load_breast_cancer)(return_X_y=True)
    x = x.astype(np.float32)
    extra = {"num_class": 3} if objective.startswith("multi") else {}
    settings = {"objective": objective, "max_depth": 3, **extra}
    booster = xgboost.train(settings, xgboost.DMatrix(x, label=y), 6)
    path = folder / "model.json"
    booster.save_model(path)
    return path, booster, x


@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softprob", "multi:softmax", "reg:squarederror"])
@pytest.mark.filterwarnings("ignore")
def test_xgboost_from_its_json_file(objective: str, tmp_path: Path) -> None:
    import xgboost

    path, booster, x = _xgboost(objective, tmp_path)
    proof = convert_library_file("xgboost", path, tmp_path / "onnx", settings=SETTINGS)
    assert proof["problem"] is None and proof["source"] == "XGBoost"
    given = load_format("onnx", tmp_path / "onnx").run({"x": x})
    expected = booster.predict(xgboost.DMatrix(x))
    answers = {
        "binary:logistic": lambda: given["probabilities"][:, 1],
        "multi:softprob": lambda: given["probabilities"],
        "multi:softmax": lambda: given["label"],
        "reg:squarederror": lambda: given["prediction"][:, 0],
    }
    np.testing.assert_allclose(answers[objective](), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["reg:logistic", "rank:pairwise"])
@pytest.mark.filterwarnings("ignore")
def test_an_objective_that_onnxmltools_writes_wrong_is_refused(objective: str, tmp_path: Path) -> None:
    """It leaves out the sigmoid of one, and takes the other for a classifier; neither raises."""
    path, _, _ = _xgboost(objective, tmp_path)
    with pytest.raises(ConversionError, match=r"something else than XGBoost|as a classifier, which it is not"):
        convert_library_file("xgboost", path, tmp_path / "onnx", settings=SETTINGS)
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
@pytest.mark.filterwarnings("ignore")
def test_lightgbm_from_its_text_file(objective: str, tmp_path: Path) -> None:
    import lightgbm

    data = {"binary": load_breast_cancer, "multiclass": load_iris, "regression": load_diabetes}[objective]
    x, y = data(return_X_y=True)
    x = x.astype(np.float32)
    extra = {"num_class": 3} if objective == "multiclass" else {}
    settings = {"objective": objective, "verbose": -1, "num_leaves": 7, **extra}
    booster = lightgbm.train(settings, lightgbm.Dataset(x, y), 6)
    booster.save_model(tmp_path / "model.txt")
    proof = convert_library_file("lightgbm", tmp_path / "model.txt", tmp_path / "onnx", settings=SETTINGS)
    assert proof["problem"] is None
    given = load_format("onnx", tmp_path / "onnx").run({"x": x})
    expected = np.asarray(booster.predict(x))
    answer = given["prediction"][:, 0] if objective == "regression" else given["probabilities"]
    np.testing.assert_allclose(answer[:, 1] if objective == "binary" else answer, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("library", "name", "content", "message"),
    [
        ("xgboost", "model.json", b'{"learner": 3}', "XGBoost cannot read"),
        ("xgboost", "model.json", b"\x80\x04", "XGBoost cannot read"),
        ("lightgbm", "model.txt", b"version=v4\nnonsense", "LightGBM cannot read"),
        ("xgboost", "model.pkl", b"", "kind is not one"),
        ("sklearn", "model.pkl", b"", r"pickles, which run code.*live object"),
    ],
)
def test_a_file_that_is_none_or_holds_code_is_refused(
    library: str, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        convert_library_file(library, tmp_path / name, tmp_path / "onnx", settings=SETTINGS)
    assert not (tmp_path / "onnx").exists()


def test_an_unknown_library_and_a_missing_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no library `caffe`"):
        convert_library_file("caffe", tmp_path / "a.caffemodel", tmp_path / "onnx", settings=SETTINGS)
    with pytest.raises(NotFoundError, match="no such model file"):
        convert_library_file("xgboost", tmp_path / "a.json", tmp_path / "onnx", settings=SETTINGS)
    assert {"keras", "lightgbm", "sklearn", "tflite", "xgboost"} == {library.name for library in list_sources()}


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_predicts_something_else_is_refused(tmp_path: Path) -> None:
    from noa_conversion.from_others.sklearn_to_onnx import convert_sklearn

    model, x, _ = _sklearn("ridge")
    convert_sklearn(model, tmp_path / "onnx", samples=x[:20])
    with pytest.raises(ConversionError, match="something else than a liar"):
        prove(
            tmp_path / "onnx",
            lambda inputs: {"prediction": np.zeros((len(inputs["x"]), 1), np.float32)},
            settings=SETTINGS,
            library="a liar",
        )
    assert Signature.load(tmp_path / "onnx").outputs[0].name == "prediction"


def _tflite(tmp_path: Path, **options: Any) -> tuple[Path, np.ndarray, np.ndarray]:
    import tflite_kit

    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_kit.dense_model(weight, bias, **options))
    return path, weight, bias


@pytest.mark.filterwarnings("ignore")
def test_tflite_from_its_file(tmp_path: Path) -> None:
    path, weight, bias = _tflite(tmp_path)
    proof = convert_library_file("tflite", path, tmp_path / "onnx", settings=SETTINGS)
    assert proof["problem"] is None and proof["source"] == "LiteRT"
    x = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    given = load_format("onnx", tmp_path / "onnx").run({"x": x})["y"]
    np.testing.assert_allclose(given, np.maximum(x @ weight.T + bias, 0), rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_tflite_file_that_is_none_or_has_a_foreign_operator_is_refused(tmp_path: Path) -> None:
    path, _, _ = _tflite(tmp_path, operator=124)
    with pytest.raises((ConversionError, InvalidInputError), match=r"cannot express|LiteRT refuses"):
        convert_library_file("tflite", path, tmp_path / "onnx", settings=SETTINGS)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match="LiteRT refuses"):
        convert_library_file("tflite", path, tmp_path / "onnx", settings=SETTINGS)
    path.write_bytes(b"hello, world")
    with pytest.raises(InvalidInputError, match="no TFLite model"):
        convert_library_file("tflite", path, tmp_path / "onnx", settings=SETTINGS)
    assert not (tmp_path / "onnx").exists()


KERAS_MODELS = ("dense", "cnn", "two")


@dataclass(frozen=True)
class KerasRun:
    """What a process converted, up to an error: answers and folders by model, and the first model as Keras saves it."""

    answers: dict[str, dict[str, Any]]
    root: Path
    error: str


@pytest.fixture(scope="module")
def keras_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], KerasRun]:
    """Converts all models on a backend in one process: to import Keras there takes longer than to convert them."""

    @functools.cache
    def run(backend: str) -> KerasRun:
        root = tmp_path_factory.mktemp(f"keras-on-{backend}")
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("keras_child.py")), str(root), *KERAS_MODELS],
            env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return KerasRun(answers=dict(ChainMap(*answers)), root=root, error=done.stderr[-2000:])

    return run


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", KERAS_MODELS)
def test_keras_on_both_backends(backend: str, name: str, keras_run: Callable[[str], KerasRun]) -> None:
    run = keras_run(backend)
    assert name in run.answers, run.error
    assert run.answers[name] == {"problem": None, "source": f"Keras on {backend}"}
    assert Signature.load(run.root / name).inputs[0].shape[0] == "batch"


@pytest.mark.slow
def test_keras_from_its_file(keras_run: Callable[[str], KerasRun], tmp_path: Path) -> None:
    proof = convert_library_file("keras", keras_run("jax").root / "model.keras", tmp_path / "onnx", settings=SETTINGS)
    assert proof["problem"] is None
    path = tmp_path / "model.keras"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InvalidInputError, match="safe mode"):
        convert_library_file("keras", path, tmp_path / "other", settings=SETTINGS)
