"""Convert live Keras models on the backend of the environment, and answer with how each compares: run by a test."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def build(keras: Any, name: str) -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    if name == "dense":
        return keras.Sequential(
            [
                layers.Input((6,)),
                layers.Dense(8, activation="relu"),
                layers.Dropout(0.5),
                layers.Dense(3, activation="softmax"),
            ]
        )
    if name == "cnn":
        return keras.Sequential(
            [
                layers.Input((8, 8, 1)),
                layers.Conv2D(4, 3, padding="same", activation="relu"),
                layers.BatchNormalization(),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )
    first, second = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    joined = layers.Concatenate()([layers.Dense(5, activation="tanh")(first), second])
    return keras.Model([first, second], [layers.Dense(2)(joined), layers.Dense(1)(joined)])


def convert(keras: Any, name: str, folder: Path) -> dict[str, Any]:
    """Convert a model into `folder`, compare the graph with it, and return what the proof says."""
    from noa_conversion import load_format
    from noa_conversion.from_others.keras_models import convert_keras

    model = build(keras, name)
    proof = convert_keras(model, folder)
    runnable = load_format("onnx", folder)
    rng = np.random.default_rng(1)
    inputs = {
        spec.name: rng.normal(size=[3 if isinstance(axis, str) else axis for axis in spec.shape]).astype(np.float32)
        for spec in runnable.signature.inputs
    }
    expected = model.predict(list(inputs.values()) if len(inputs) > 1 else next(iter(inputs.values())), verbose=0)
    answers = list(runnable.run(inputs).values())
    for left, right in zip(expected if isinstance(expected, list) else [expected], answers, strict=True):
        np.testing.assert_allclose(np.asarray(left), right, rtol=1e-3, atol=1e-4)
    return {"problem": proof["problem"], "source": proof["source"]}


def main() -> None:
    """`FOLDER NAME...` converts models into folders of their names, a line each, and saves the first as Keras does."""
    warnings.simplefilter("ignore")
    root, names = Path(sys.argv[1]), sys.argv[2:]
    import keras

    build(keras, names[0]).save(root / "model.keras")
    for name in names:
        print(json.dumps({name: convert(keras, name, root / name)}), flush=True)


if __name__ == "__main__":
    main()
