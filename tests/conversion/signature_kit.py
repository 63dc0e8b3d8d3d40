"""A format whose program is not what its signature says: made, and tried to be registered."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from noa.errors import InvalidInputError
from noa.settings import RegistrySettings
from noa.signatures import Signature, TensorSpec
from noa_registry import Registry, VersionDraft

WRONGS = ("an input more", "an output more", "dtype", "size", "rank", "free")


def wrong(signature: Signature, what: str) -> Signature:
    first, answer = signature.inputs[0], signature.outputs[0]
    fixed = tuple(axis if isinstance(axis, str) else axis + 1 for axis in first.shape)
    more = TensorSpec(name="more", dtype="float32", shape=("batch",))
    return {
        "an input more": replace(signature, inputs=(*signature.inputs, more)),
        "an output more": replace(signature, outputs=(*signature.outputs, more)),
        "dtype": replace(signature, inputs=(replace(first, dtype="float64"), *signature.inputs[1:])),
        "size": replace(signature, inputs=(replace(first, shape=fixed), *signature.inputs[1:])),
        "rank": replace(signature, outputs=(replace(answer, shape=(*answer.shape, 1)), *signature.outputs[1:])),
        "free": replace(signature, outputs=(replace(answer, shape=("batch", "n")), *signature.outputs[1:])),
    }[what]


def refuse_at_registration(folder: Path, form: str, *, match: str, root: Path, empty: Path) -> None:
    """Assert that the format is refused with such a message, and that nothing is registered.

    The registry is a copy of the database `empty`, below `root`.
    """
    signature = Signature.load(folder)
    example = {
        spec.name: np.zeros([1 if isinstance(axis, str) else axis for axis in spec.shape], spec.dtype)
        for spec in signature.inputs
    }
    shutil.copyfile(empty, root / "noa.db")
    settings = RegistrySettings(database_url=f"sqlite:///{root}/noa.db", artifact_dir=root / "artifacts")
    draft = VersionDraft(
        name="m", formats={form: folder}, native=form, input_example=example, dataset_digest="sha256:" + "0" * 64
    )
    with Registry.open(settings) as registry:
        with pytest.raises(InvalidInputError, match=match):
            registry.register(draft, actor="ada")
        assert registry.models() == []
