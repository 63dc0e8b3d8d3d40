from __future__ import annotations

import subprocess
import sys

import noa_registry


def test_all_names_exist_and_the_lazy_ones_are_among_them() -> None:
    for name in noa_registry.__all__:
        assert getattr(noa_registry, name) is not None
    assert set(noa_registry._LAZY) <= set(noa_registry.__all__)
    assert sorted(noa_registry.__all__, key=str.lower) == sorted(set(noa_registry.__all__), key=str.lower)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(noa_registry, "nothing")


def test_importing_the_room_loads_no_library_that_takes_long() -> None:
    code = (
        "import sys, noa_registry; "
        "print(sorted({'numpy', 'mlflow', 'sqlalchemy', 'torch', 'jax', 'onnxruntime', 'pydantic', 'yaml'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
