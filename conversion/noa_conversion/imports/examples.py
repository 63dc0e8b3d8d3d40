"""Input examples of models that came without one: read from a file, or made up the same way every time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from noa.digests import digest_json
from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Signature, TensorSpec, is_float, numpy_dtype
from noa_conversion.made_up_texts import draw_texts

if TYPE_CHECKING:
    import numpy as np

_FREE_SIZE: Final = 2
_MOST_BYTES: Final = 256 << 20
_MOST_ELEMENTS: Final = 1 << 24


def make_example(signature: Signature) -> dict[str, np.ndarray]:
    """Return made-up inputs: normal numbers, 0 and 1 where whole numbers are wanted, and words.

    The same for one signature.


    Raises:
        InvalidInputError: the signature wants more than can be made up.
    """
    import numpy as np

    seed = int(digest_json(signature.to_dict()).removeprefix("sha256:")[:16], 16)
    generator = np.random.default_rng(seed)
    example: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        shape = tuple(_FREE_SIZE if isinstance(axis, str) else axis for axis in spec.shape)
        if int(np.prod(shape, dtype=object)) > _MOST_ELEMENTS:
            raise InvalidInputError(
                f"input `{spec.name}` is too large to make one up",
                expected=f"at most {_MOST_ELEMENTS} numbers",
                received=spec.describe(),
                remedy="Give a real one with --example FILE",
            )
        if spec.dtype == "string":
            example[spec.name] = draw_texts(generator, shape)
            continue
        values = generator.standard_normal(shape) if is_float(spec.dtype) else generator.integers(0, 2, shape)
        example[spec.name] = np.asarray(values).astype(numpy_dtype(spec.dtype))
    return example


def read_example(path: Path, signature: Signature) -> dict[str, np.ndarray]:
    """Read real inputs: `.npz` or `.safetensors` with arrays by name, or `.json` with lists.

    Raises:
        InvalidInputError: unreadable, or with Python objects inside.
        SignatureError: it does not fit the signature; names the input.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        found = _read(path)
        arrays = _by_name(found, signature)
    except SignatureError:
        raise
    except Exception as exc:  # NumPy, zipfile and safetensors raise errors of many kinds
        raise InvalidInputError(
            f"the example `{path.name}` cannot be read: {exc}",
            where=str(path),
            expected="an .npz, .safetensors or .json file with all inputs by name",
        ) from exc
    signature.validate(arrays)
    missing = [spec.name for spec in signature.inputs if spec.name not in arrays]
    if missing:
        raise SignatureError(f"the example lacks input `{missing[0]}`", where=str(path), field=missing[0])
    return arrays


def _read(path: Path) -> object:
    import numpy as np

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    return json.loads(path.read_text())


def _by_name(found: object, signature: Signature) -> dict[str, np.ndarray]:
    """Return the arrays by input name, in the types of the signature."""
    if isinstance(found, Mapping):
        table = cast("Mapping[str, Any]", found)
        if "inputs" in table and "inputs" not in {spec.name for spec in signature.inputs}:
            return _by_name(table["inputs"], signature)
    elif len(signature.inputs) == 1:
        table = {signature.inputs[0].name: found}
    else:
        raise InvalidInputError("there are several inputs", expected="a table of them by name")
    specs = {spec.name: spec for spec in signature.inputs}
    return {name: _array(value, specs.get(name)) for name, value in table.items()}


def _array(value: Any, spec: TensorSpec | None) -> np.ndarray:
    import numpy as np

    array = np.array(value, dtype=object) if spec is not None and spec.dtype == "string" else np.asarray(value)
    if array.dtype.hasobject and (spec is None or spec.dtype != "string"):
        raise InvalidInputError("an example holds Python objects or lists of unequal length", expected="numbers")
    if spec is None or hasattr(value, "dtype") or spec.dtype == "string":
        return array
    return array.astype(numpy_dtype(spec.dtype))
