"""Images as inputs of `noa predict`: layouts, sizes, ranges and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noa.errors import InvalidInputError
from noa.signatures import Axis, DType, TensorSpec
from noa_cli._image_input import read_image
from noa_cli.commands.predict import read_inputs


def spec(*shape: Axis, dtype: DType = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="image", dtype=dtype, shape=("batch", *shape)),)


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (16, 8), (255, 0, 51)).save(path)
    return path


@pytest.mark.parametrize("shape", [(3, 4, 6), (4, 6, 3)], ids=["channels first", "channels last"])
def test_an_image_is_brought_to_the_models_layout_and_size(red: Path, shape: tuple[int, ...]) -> None:
    array = read_inputs(str(red), spec(*shape))["image"]
    assert (array.shape, array.dtype) == ((1, *shape), np.float32)
    pixel = array[0, :, 1, 2] if shape[0] == 3 else array[0, 1, 2]
    assert pixel.tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_integers_are_0_to_255_and_one_channel_is_grey(red: Path) -> None:
    assert read_image(red, spec(8, 16, 3, dtype="uint8"))["image"][0, 0, 0].tolist() == [255, 0, 51]
    grey = read_image(red, spec(8, 8, dtype="uint8"))["image"]
    assert grey.shape == (1, 8, 8)
    assert int(grey[0, 0, 0]) == Image.open(red).convert("L").getpixel((0, 0))
    assert read_image(red, spec(1, 8, 8))["image"].shape == (1, 1, 8, 8)


def test_what_is_no_image_or_no_model_for_one_is_refused(red: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="takes no image"):
        read_image(red, spec(64))
    with pytest.raises(InvalidInputError, match="takes no image"):
        read_image(red, spec("height", "width", 3))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(red.read_bytes()[:40])
    with pytest.raises(InvalidInputError, match="not a readable image"):
        read_image(broken, spec(8, 8))
