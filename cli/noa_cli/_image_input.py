"""An image file as the input of a model that takes images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import DependencyMissingError, InvalidInputError
from noa.signatures import is_float, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from noa.signatures import TensorSpec

_MOST_PIXELS = 64 << 20
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_image(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Return an image in the size, channels and layout of a model's only input, as a batch of one.

    The layout is read from the shape: `(batch, channels, height, width)`, `(batch, height, width, channels)` or
    `(batch, height, width)`, with 1, 3 or 4 channels. Integers are 0 to 255, floats 0 to 1.

    Raises:
        DependencyMissingError: Pillow is not installed.
        InvalidInputError: the model takes no image, or the file is none.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as exc:
        raise DependencyMissingError("pillow", extra="images", purpose="reading an image") from exc
    import numpy as np

    channels, height, width, is_first = _layout(specs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            with Image.open(path) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise InvalidInputError(
                        "the image is too large",
                        where=str(path),
                        expected=f"at most {_MOST_PIXELS} pixels",
                        received=f"{image.width} x {image.height}",
                    )
                scaled = image.convert(_MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise InvalidInputError("not a readable image", where=str(path)) from exc
    spec = specs[0]
    pixels = np.asarray(scaled, np.uint8).reshape(height, width, channels)
    if is_float(spec.dtype):
        pixels = (pixels / 255.0).astype(numpy_dtype(spec.dtype))
    arranged = pixels.transpose(2, 0, 1) if is_first else pixels
    sizes = [1, *(size for size in spec.shape[1:] if isinstance(size, int))]
    return {spec.name: np.ascontiguousarray(arranged).astype(numpy_dtype(spec.dtype), copy=False).reshape(sizes)}


def _layout(specs: tuple[TensorSpec, ...]) -> tuple[int, int, int, bool]:
    """Return channels, height, width, and whether the channels come first."""
    sizes = [size for size in specs[0].shape[1:] if isinstance(size, int)]
    is_whole = (
        len(specs) == 1 and len(sizes) == len(specs[0].shape) - 1 and specs[0].dtype not in ("bool", "int8", "string")
    )
    if is_whole and len(sizes) == 2:
        return 1, sizes[0], sizes[1], False
    if is_whole and len(sizes) == 3 and (sizes[0] in (1, 3) or (sizes[0] in _MODES and sizes[2] not in _MODES)):
        return sizes[0], sizes[1], sizes[2], True
    if is_whole and len(sizes) == 3 and sizes[2] in _MODES:
        return sizes[2], sizes[0], sizes[1], False
    raise InvalidInputError(
        "the model takes no image",
        expected="one input of shape (batch, channels, height, width) or (batch, height, width, channels)",
        received=", ".join(spec.describe() for spec in specs),
        remedy="Send a .npy or .json file",
    )
