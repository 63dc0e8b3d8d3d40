"""A JAX program is compared with the signature when it is registered: from its bytes alone."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from signature_kit import WRONGS, refuse_at_registration, wrong

from noa.errors import InvalidInputError
from noa.formats import SignatureChecker, find_adapter
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, save_native
from noa_conversion.formats import jax_format
from noa_conversion.formats.jax_interface import check_interface
from samples import mostly

pytestmark = pytest.mark.jax
NO_JAX = """
import sys
from pathlib import Path
from noa.formats import find_adapter
from noa.signatures import Signature
folder = Path(sys.argv[1])
find_adapter("jax").check_signature(folder, Signature.load(folder))
assert "jax" not in sys.modules
"""
PROGRAM = "program.stablehlo"
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "float32")
SHAPES: tuple[tuple[int | str, ...], ...] = ((), (3,), ("batch",), ("batch", 2, "seq"))


def checker() -> SignatureChecker:
    adapter = find_adapter("jax")
    assert isinstance(adapter, SignatureChecker)
    return adapter


@pytest.mark.parametrize("model", ["image", "rows"])
@pytest.mark.parametrize("what", WRONGS)
def test_a_jax_program_that_is_not_of_its_signature_is_refused_at_registration(
    model: str, what: str, zoo: Any, tmp_path: Path, empty_sqlite_file: Path
) -> None:
    folder = zoo.copy(zoo.folder("jax", model, "jax"), tmp_path / "jax")
    checker().check_signature(folder, Signature.load(folder))
    wrong(Signature.load(folder), what).save(folder)
    refuse_at_registration(folder, "jax", match=r"program\.stablehlo", root=tmp_path, empty=empty_sqlite_file)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    mostly("conformance", product(DTYPES, SHAPES), sample=[*zip(DTYPES, cycle(SHAPES), strict=False)]),
)
def test_what_the_bytes_say_is_what_jax_reads(dtype: Any, shape: tuple[int | str, ...], tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=shape)
    signature = Signature(inputs=(spec,), outputs=(replace(spec, name="y"),))
    model = JaxModel(
        apply=lambda params, x: x + params["one"].astype(x.dtype),
        params={"one": np.ones((), "float32")},
        signature=signature,
    )
    if dtype == "bool":
        model = replace(model, apply=lambda params, x: x | (params["one"] > 0))
    save_native(model, tmp_path / "jax")
    read = jax.export.deserialize(bytearray((tmp_path / "jax" / PROGRAM).read_bytes()))
    assert [str(axis) for axis in read.in_avals[1].shape] == [str(axis) for axis in shape]
    checker().check_signature(tmp_path / "jax", signature)
    other = replace(spec, dtype="float64")
    with pytest.raises(InvalidInputError, match=rf"tensor `x`.*received {dtype}\("):
        checker().check_signature(tmp_path / "jax", replace(signature, inputs=(other,)))


def test_whole_numbers_of_64_bits_may_be_declared_around_a_program_of_32(zoo: Any, tmp_path: Path) -> None:
    narrow = Signature(
        inputs=(TensorSpec(name="x", dtype="int32", shape=("batch",)),),
        outputs=(TensorSpec(name="y", dtype="int32", shape=("batch",)),),
    )
    wide = Signature(
        inputs=(replace(narrow.inputs[0], dtype="int64"),), outputs=(replace(narrow.outputs[0], dtype="int64"),)
    )
    tmp_path.joinpath("jax").mkdir()
    model = JaxModel(apply=lambda params, x: x + params["one"], params={"one": np.ones((), "int32")}, signature=narrow)
    jax_format.save(model, tmp_path / "jax", declared=wide)
    checker().check_signature(tmp_path / "jax", wide)
    checker().check_signature(tmp_path / "jax", narrow)


def test_a_program_of_an_older_jax_is_read_and_one_of_a_newer_is_left_to_jax(zoo: Any) -> None:
    folder = zoo.folder("jax", "rows", "jax")
    data = bytearray((folder / PROGRAM).read_bytes())
    signature = Signature.load(folder)
    weights = len(jax_format.read_json(folder, "program.json")["weights"])  # type: ignore[arg-type]
    (root,) = struct.unpack_from("<I", data)
    vtable = root - struct.unpack_from("<i", data, root)[0]
    for field in (19, 22, 23):  # tensors by number, which JAX writes since version 10
        struct.pack_into("<H", data, vtable + 4 + 2 * field, 0)
    check_interface(bytes(data), weights, signature, folder / PROGRAM)
    with pytest.raises(InvalidInputError, match="differs from its signature"):
        check_interface(bytes(data), weights, wrong(signature, "dtype"), folder / PROGRAM)
    struct.pack_into("<H", data, root + struct.unpack_from("<H", data, vtable + 4)[0], 99)
    check_interface(bytes(data), weights, wrong(signature, "dtype"), folder / PROGRAM)


def test_damaged_bytes_end_in_a_verdict_and_looking_imports_no_jax(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("jax", "rows", "jax"), tmp_path / "jax")
    subprocess.run([sys.executable, "-c", NO_JAX, str(folder)], check=True, timeout=120)
    signature, data = Signature.load(folder), (folder / PROGRAM).read_bytes()
    dice = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(data[: dice.choice((len(data), dice.randrange(len(data))))])
        for _ in range(dice.randrange(1, 20)):
            if damaged:
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        with suppress(InvalidInputError):
            check_interface(bytes(damaged), 2, signature, folder / PROGRAM)
    (folder / PROGRAM).write_bytes(b"no program")
    with pytest.raises(InvalidInputError, match=r"`program\.stablehlo` is no exported function of JAX"):
        checker().check_signature(folder, signature)
