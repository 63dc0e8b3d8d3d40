from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Signature, TensorSpec
from noa_training import Dataset, Recipe, Split, evaluate, mlp
from noa_training.evaluation import predict


class Doubling:
    """A runnable that returns its input as logits and records the batches it saw."""

    def __init__(self, dtype: str = "float32") -> None:
        spec = TensorSpec(name="x", dtype=dtype, shape=("batch", 3))  # type: ignore[arg-type]
        self.signature = Signature(
            inputs=(spec,), outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),)
        )
        self.sizes: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.sizes.append(len(inputs["x"]))
        return {"logits": inputs["x"] * 2}


def split(rows: int) -> Split:
    random = np.random.default_rng(rows)
    return Split(inputs={"x": random.normal(size=(rows, 3)).astype(np.float32)}, targets=random.integers(0, 3, rows))


def recipe() -> Recipe:
    def data() -> Dataset:
        raise AssertionError("not called")

    return Recipe(name="m", data=data, model=mlp(), objective="cross_entropy", metrics=("accuracy",))


@given(rows=st.integers(1, 40), batch=st.integers(1, 12))
def test_batches_of_one_size_give_the_rows_in_order(rows: int, batch: int) -> None:
    model, part = Doubling(), split(rows)
    outputs = predict(lambda inputs: model.run(inputs)["logits"], part, batch_rows=batch)
    np.testing.assert_array_equal(outputs, part.inputs["x"] * 2)
    assert set(model.sizes) == {min(batch, rows)}


def test_evaluate_measures_the_recipes_metrics_and_loss() -> None:
    part = split(2000)
    values = evaluate(recipe(), Doubling(), part)
    assert set(values) == {"loss", "accuracy"}
    assert values["accuracy"] == np.mean(part.inputs["x"].argmax(1) == part.targets)


def test_a_model_that_does_not_fit_the_split_is_refused() -> None:
    with pytest.raises(SignatureError, match="wrong dtype"):
        evaluate(recipe(), Doubling("float16"), split(3))
    with pytest.raises(InvalidInputError, match="no row per input row"):
        predict(lambda inputs: np.zeros(3), split(5))
