"""A PyTorch program is compared with the signature when it is registered: from its JSON alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noa.errors import InvalidInputError
from noa.formats import SignatureChecker, find_adapter
from noa.settings import RegistrySettings
from noa.signatures import Signature, TensorSpec
from noa_registry import Registry, VersionDraft

NO_TORCH = """
import sys
from pathlib import Path
from noa.formats import find_adapter
from noa.signatures import Signature
folder = Path(sys.argv[1])
find_adapter("torch").check_signature(folder, Signature.load(folder))
assert "torch" not in sys.modules
"""


def wrong(signature: Signature, what: str) -> Signature:
    first, answer = signature.inputs[0], signature.outputs[0]
    fixed = tuple(axis if isinstance(axis, str) else axis + 1 for axis in first.shape)
    return {
        "an input more": replace(
            signature, inputs=(*signature.inputs, TensorSpec(name="more", dtype="float32", shape=("batch",)))
        ),
        "an output more": replace(
            signature, outputs=(*signature.outputs, TensorSpec(name="more", dtype="float32", shape=("batch",)))
        ),
        "dtype": replace(signature, inputs=(replace(first, dtype="float64"), *signature.inputs[1:])),
        "size": replace(signature, inputs=(replace(first, shape=fixed), *signature.inputs[1:])),
        "rank": replace(signature, outputs=(replace(answer, shape=(*answer.shape, 1)), *signature.outputs[1:])),
        "free": replace(signature, outputs=(replace(answer, shape=("batch", "n")), *signature.outputs[1:])),
    }[what]


@pytest.mark.parametrize("model", ["image", "rows"])
@pytest.mark.parametrize("what", ["an input more", "an output more", "dtype", "size", "rank", "free"])
def test_a_program_that_is_not_of_its_signature_is_refused_at_registration(
    model: str, what: str, zoo: Any, tmp_path: Path
) -> None:
    folder = zoo.copy(zoo.folder("torch", model, "torch"), tmp_path / "torch")
    adapter = find_adapter("torch")
    assert isinstance(adapter, SignatureChecker)
    adapter.check_signature(folder, Signature.load(folder))
    signature = wrong(Signature.load(folder), what)
    signature.save(folder)
    example = {
        spec.name: np.zeros([1 if isinstance(axis, str) else axis for axis in spec.shape], spec.dtype)
        for spec in signature.inputs
    }
    settings = RegistrySettings(database_url=f"sqlite:///{tmp_path}/noa.db", artifact_dir=tmp_path / "artifacts")
    draft = VersionDraft(
        name="m", formats={"torch": folder}, native="torch", input_example=example, dataset_digest="sha256:" + "0" * 64
    )
    with Registry.open(settings) as registry:
        with pytest.raises(InvalidInputError, match=r"program\.pt2"):
            registry.register(draft, actor="ada")
        assert registry.models() == []


def test_what_is_no_archive_is_refused_and_looking_imports_no_torch(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("torch", "rows", "torch"), tmp_path / "torch")
    subprocess.run([sys.executable, "-c", NO_TORCH, str(folder)], check=True, timeout=120)
    (folder / "program.pt2").write_bytes(b"no archive")
    adapter = find_adapter("torch")
    assert isinstance(adapter, SignatureChecker)
    with pytest.raises(InvalidInputError, match=r"program\.pt2"):
        adapter.check_signature(folder, Signature.load(folder))
