"""`python -m benchmarks.serving.limit MODEL_FOLDER BATCH SECONDS`: what onnxruntime does with nothing around it.

Prints rows per second by the clock and by CPU time. Runs in a process of its own, pinned like a server.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    from benchmarks.serving.served_models import make_model, open_session

    folder, batch, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    model = make_model(folder.name, folder.parent.parent)
    session = open_session(model.path)
    rows = [model.rows[i % len(model.rows)] for i in range(batch)]
    inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    for _ in range(3):
        session.run(None, inputs)
    runs, cpu_s, started = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        session.run(None, inputs)
        runs += 1
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    print(json.dumps({"rows": runs * batch, "runs": runs, "elapsed_s": elapsed_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
