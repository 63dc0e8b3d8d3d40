"""Writes the model in MLflow's own ONNX flavor, then becomes `mlflow models serve`. Arguments: folder, port."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import mlflow.onnx
import onnx


def main() -> None:
    source, port = Path(os.environ["NOA_BENCH_MODEL"]), os.environ["NOA_BENCH_PORT"]
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    options = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    mlflow.onnx.save_model(
        onnx.load(str(source / "model.onnx")),
        str(target),
        onnx_session_options=options,
        onnx_execution_providers=["CPUExecutionProvider"],
        pip_requirements=[],
    )
    arguments = ["models", "serve", "-m", str(target), "-p", port, "-h", "127.0.0.1"]
    arguments += ["--env-manager", "local", "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


if __name__ == "__main__":
    main()
