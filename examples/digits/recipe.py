"""Handwritten digits, 8x8 pixels: 1,797 images that ship with scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from noa_training import AdamW, Dataset, Recipe, Split, WarmupCosine, cnn

SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # each training image also one pixel to each side


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return padded[:, :, 1 - down : 9 - down, 1 - right : 9 - right]


def load(fraction: float) -> Dataset:
    """Train on `fraction` of the training images; validation and test images are always the same."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    rest, test, rest_y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train, val, train_y, val_y = train_test_split(rest, rest_y, test_size=0.15, random_state=0, stratify=rest_y)
    count = round(len(train) * fraction)
    train = np.concatenate([shifted(train[:count], *shift) for shift in SHIFTS])
    return Dataset(
        train=Split(inputs={"image": train}, targets=np.tile(train_y[:count], len(SHIFTS))),
        validation=Split(inputs={"image": val}, targets=val_y),
        test=Split(inputs={"image": test}, targets=test_y),
    )


digits = Recipe(
    name="digits",
    data=load,
    data_params={"fraction": 1.0},
    model=cnn(channels=(32, 64), hidden=64, dropout=0.2),
    objective="cross_entropy",
    metrics=("accuracy", "f1"),
    optimizer=AdamW(learning_rate=3e-3),
    schedule=WarmupCosine(warmup_steps=50),
    epochs=10,
    batch_size=64,
    best_by="loss",
)
