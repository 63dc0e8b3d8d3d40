from __future__ import annotations

import subprocess
import sys

import noa_flows


def test_every_exported_name_is_there() -> None:
    assert [name for name in noa_flows.__all__ if not hasattr(noa_flows, name)] == []


def test_importing_the_room_loads_no_framework() -> None:
    code = (
        "import sys, noa_flows; frameworks = {'prefect', 'torch', 'jax', 'mlflow', 'bentoml', 'onnx', 'onnxruntime', "
        "'sqlalchemy'}; print(sorted(frameworks & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_listing_flows_does_not_import_prefect() -> None:
    code = "import sys, noa_flows.schedules; print('prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
