"""What the tests of this room share; `conftest.py` puts this folder on the path."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from noa.settings import Settings, load_settings
from noa_flows._process_tree import ProcessId, identify

ESCAPE_ARTIST = '''
    """Ignores TERM, and leaves a grandchild that forked twice, has a session of its own and ignores TERM too."""
    import os, signal, sys, time
    from pathlib import Path

    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            (folder / "escaped.pid").write_text(f"{os.getpid()}\\n")
            time.sleep(120)
        os._exit(0)
    os.wait()
    (folder / "inner.pid").write_text(f"{os.getpid()}\\n")
    print("ready", flush=True)
    for _ in range(12000):
        if "leave" in sys.argv and (folder / "go").exists():
            sys.exit(0)
        time.sleep(0.01)
'''


def wait_until(condition: Callable[[], object], *, deadline_s: float = 20.0) -> None:
    """Poll a condition; fail the test when the deadline passes."""
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {deadline_s:g} s: {condition}")
        time.sleep(0.01)


def read_pid(path: Path) -> ProcessId:
    """Wait for a process to write its pid to `path`, and return who that is."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    process = identify(int(path.read_text()))
    assert process is not None, f"the process of {path.name} ended at once"
    return process


RECIPE = """
import numpy as np
from noa_training import AdamW, Dataset, Recipe, Split, mlp


def data(rows: int = 240) -> Dataset:
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, 4)).astype(np.float32)
    targets = (features[:, 0] + features[:, 1] > 0).astype(np.int64)
    third = rows // 3
    parts = [
        Split(inputs={"features": features[i * third : (i + 1) * third]}, targets=targets[i * third : (i + 1) * third])
        for i in range(3)
    ]
    return Dataset(train=parts[0], validation=parts[1], test=parts[2])


recipe = Recipe(
    name="tiny",
    data=data,
    model=mlp(hidden=(8,)),
    objective="cross_entropy",
    metrics=("accuracy",),
    optimizer=AdamW(learning_rate=0.05),
    epochs=4,
    batch_size=16,
    data_params={"rows": 240},
)
"""
PROJECT = """
[project]
name = "flow-tests"
[flows]
port = 0
stop_timeout_s = 5
[tracking]
port = 0
[serving]
port = 0
[endpoints.tiny]
model = "tiny@champion"
[recipes.tiny]
path = "recipe.py"
backends = ["torch"]
[recipes.strict]
path = "recipe.py"
backends = ["torch"]
[gates.strict.min_metrics]
accuracy = 0.1
"""


def make_project(folder: Path) -> Settings:
    """Write a project with a tiny recipe under two names, and return its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "noa.toml").write_text(PROJECT)
    (folder / "recipe.py").write_text(RECIPE)
    return load_settings(folder).settings
