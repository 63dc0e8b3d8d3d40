"""The converters' graph, the public functions, and what they leave on disk."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from noa.errors import ConversionError, InvalidInputError, StorageError
from noa.signatures import Signature, TensorSpec
from noa_conversion import (
    JaxModel,
    TorchModel,
    conversion_chain,
    convert,
    convert_folder,
    find_converters,
    load_format,
    save_native,
)
from noa_conversion.files import staged_folder


def test_every_converter_is_its_own_shortest_chain() -> None:
    for (source, target), converter in find_converters().items():
        assert conversion_chain(source, target) == (converter,)


def test_a_format_needs_no_conversion_to_itself() -> None:
    assert conversion_chain("onnx", "onnx") == ()


def test_a_chain_that_does_not_exist_says_what_does() -> None:
    with pytest.raises(ConversionError, match=r"from `torch` to `tflite`.*onnx"):
        conversion_chain("live:torch", "tflite")


def test_a_stored_jax_program_is_refused_with_the_remedy(zoo: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="Convert from the recipe"):
        convert_folder("jax", zoo.folder("jax", "rows", "jax"), "onnx", tmp_path / "out", settings=zoo.settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["image", "rows"])
def test_a_stored_torch_program_converts_without_its_code(name: str, zoo: Any, tmp_path: Path) -> None:
    source = zoo.folder("torch", name, "torch")
    convert_folder("torch", source, "onnx", tmp_path / "onnx", settings=zoo.settings)
    inputs = zoo.draw_inputs(Signature.load(source), 3)
    expected = load_format("torch", source).run(inputs)
    for key, value in load_format("onnx", tmp_path / "onnx").run(inputs).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5)
    names = {tensor.name for tensor in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    stored = {key for key, _ in zoo.torch_model(name).module.named_parameters()}
    assert stored <= names


def test_converting_a_format_to_itself_is_refused(zoo: Any, tmp_path: Path) -> None:
    source = zoo.folder("torch", "rows", "torch")
    with pytest.raises(InvalidInputError, match="already"):
        convert_folder("torch", source, "torch", tmp_path / "out", settings=zoo.settings)


def test_a_folder_that_holds_files_is_left_alone(zoo: Any, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="folder of its own"):
        save_native(zoo.torch_model("rows"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_empty_folder_is_used(zoo: Any, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    assert save_native(zoo.jax_model("rows"), tmp_path / "native") == "jax"
    assert load_format("jax", tmp_path / "native").signature == zoo.jax_model("rows").signature


def test_a_failed_conversion_leaves_nothing(zoo: Any, tmp_path: Path) -> None:
    model = zoo.torch_model("rows")
    outputs = (TensorSpec(name="score", dtype="float64", shape=("batch",)), *model.signature.outputs[1:])
    wrong = TorchModel(module=model.module, signature=Signature(inputs=model.signature.inputs, outputs=outputs))
    for target in ("torch", "onnx"):
        with pytest.raises(ConversionError, match="score"):
            convert(wrong, tmp_path / target, to=target, settings=zoo.settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_disk_that_fills_up_while_weights_are_written_is_a_storage_error(framework: str, tmp_path: Path) -> None:
    """A limit on file size stands in for the disk; it is set in a process of its own."""
    code = (
        "import pathlib, resource, sys, numpy, torch\n"
        "from noa.errors import StorageError\n"
        "from noa_conversion.files import write_weights\n"
        "from noa_conversion.formats.torch_format import _write_weights\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "array = numpy.ones(10_000, 'f')\n"
        f"is_torch = {framework == 'torch'}\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "try:\n"
        "    write = _write_weights if is_torch else write_weights\n"
        "    write(folder, {'w': torch.from_numpy(array) if is_torch else array})\n"
        "except StorageError as exc:\n"
        "    sys.exit(0 if 'weights.safetensors' in str(exc) else 1)\n"
        "sys.exit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_no_half_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left"), staged_folder(tmp_path / "model") as folder:
        (folder / "model.onnx").write_bytes(b"half")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"more")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_copied_names_the_file_and_where_it_was_to_be(tmp_path: Path) -> None:
    """A limit on file size stands in for the disk."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights.bin").write_bytes(b"\0" * 8192)
    code = (
        "import pathlib, resource, signal, sys\n"
        "from noa.errors import StorageError\n"
        "from noa_conversion.files import copy_folder, staged_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"output = pathlib.Path({str(tmp_path / 'out')!r})\n"
        "try:\n"
        "    with staged_folder(output) as staged:\n"
        f"        copy_folder(pathlib.Path({str(source)!r}), staged, told=output)\n"
        "except StorageError as exc:\n"
        "    sys.exit(0 if 'cannot write `weights.bin`' in str(exc) and 'out/weights.bin' in str(exc) else str(exc))\n"
        "sys.exit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("target", ["torch", "jax"])
def test_all_files_of_a_format_may_be_read_by_the_same_people(target: str, zoo: Any) -> None:
    folder = zoo.folder(target, "rows", target)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {modes["signature.json"]}, modes


def test_an_output_axis_that_no_input_has_is_refused(zoo: Any, tmp_path: Path) -> None:
    model = zoo.jax_model("rows")
    outputs = (TensorSpec(name="score", dtype="float32", shape=("lines",)), *model.signature.outputs[1:])
    wrong = JaxModel(
        apply=model.apply, params=model.params, signature=Signature(inputs=model.signature.inputs, outputs=outputs)
    )
    with pytest.raises(ConversionError, match="`lines`"):
        convert(wrong, tmp_path / "onnx", settings=zoo.settings)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
def test_a_jax_model_with_64_bits_is_refused_by_name(dtype: Any, zoo: Any) -> None:
    model = zoo.jax_model("rows")
    inputs = (TensorSpec(name="numbers", dtype=dtype, shape=("batch", 6)), model.signature.inputs[1])
    with pytest.raises(ConversionError, match=r"`numbers`.*32 bits"):
        JaxModel(
            apply=model.apply, params=model.params, signature=Signature(inputs=inputs, outputs=model.signature.outputs)
        )
