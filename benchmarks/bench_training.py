"""Training: the engine's time per step against a minimal hand-written loop of the same model, in the same run.

The engine's time runs from the end of its second epoch to the end of its last, so what a job costs once (imports,
compilation) falls out and what an epoch costs (shuffling, validation, events, checkpoints) does not. The hand loops do
nothing but the step: fused AdamW for torch, one jitted step with donated buffers for JAX.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from benchmarks import tracking_cost
from benchmarks.rows import Row

BATCH, FEATURES, HIDDEN, CLASSES = 256, 64, 256, 10
STEPS_PER_EPOCH = 40

RECIPE = f"""
import numpy as np
from noa_training import AdamW, Dataset, Recipe, Split, mlp

def data():
    random = np.random.default_rng(0)
    def split(rows):
        x = random.normal(size=(rows, {FEATURES})).astype(np.float32)
        return Split(inputs={{"x": x}}, targets=random.integers(0, {CLASSES}, rows))
    return Dataset(train=split({BATCH * STEPS_PER_EPOCH}), validation=split(16), test=split(16))

recipe = Recipe(name="bench", data=data, model=mlp(hidden=({HIDDEN},)), objective="cross_entropy", optimizer=AdamW(),
                batch_size={BATCH}, epochs=1)
"""

ENGINE = """
import json, sys, time
from pathlib import Path
from noa.settings import TrainingSettings
from noa_training import JobRequest, run_job
backend, root, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if backend == "torch":
    import torch
    torch.set_num_threads(1)
settings = TrainingSettings(jobs_dir=root / "jobs", log_every_steps=20, checkpoint_every_s=3600)
def microseconds(seed):
    times = []
    overrides = {"epochs": epochs + 2}
    request = JobRequest(recipe="recipe.py", root=root, backend=backend, overrides=overrides, seed=seed, threads=1)
    run_job(request, settings, registry=None,
            on_event=lambda e: times.append(time.perf_counter()) if e.kind == "epoch" else None)
    return (times[-1] - times[1]) / (epochs * STEPS) * 1e6
print(json.dumps([microseconds(turn) for turn in range(3)]))
"""

HAND = {
    "torch": """
import json, sys, time, torch
torch.set_num_threads(1); torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
x, y = torch.randn(BATCH * STEPS, FEATURES), torch.randint(0, CLASSES, (BATCH * STEPS,))
def epochs(count):
    start = time.perf_counter()
    for _ in range(count):
        order = torch.randperm(len(x))
        for at in range(0, len(x), BATCH):
            rows = order[at:at + BATCH]
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start
count = int(sys.argv[3]); epochs(1)
print(json.dumps([epochs(count) / (count * STEPS) * 1e6 for _ in range(3)]))
""",
    "jax": """
import json, os, sys, time
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
import functools, jax, jax.numpy as jnp, numpy as np, optax
random = np.random.default_rng(0)
params = {"w1": jnp.asarray(random.normal(size=(FEATURES, HIDDEN)), jnp.float32) / 8, "b1": jnp.zeros(HIDDEN),
          "w2": jnp.asarray(random.normal(size=(HIDDEN, CLASSES)), jnp.float32) / 16, "b2": jnp.zeros(CLASSES)}
optimizer = optax.adamw(1e-3, weight_decay=1e-2)
state = optimizer.init(params)
x = random.normal(size=(BATCH * STEPS, FEATURES)).astype(np.float32)
y = random.integers(0, CLASSES, BATCH * STEPS)
def loss_of(params, x, y):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["w2"] + params["b2"], y).mean()
@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, x, y):
    loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss
def epochs(count):
    global params, state
    start = time.perf_counter()
    for _ in range(count):
        order = random.permutation(len(x))
        for at in range(0, len(x), BATCH):
            rows = order[at:at + BATCH]
            params, state, loss = step(params, state, x[rows], y[rows])
    jax.block_until_ready(params)
    return time.perf_counter() - start
count = int(sys.argv[3]); epochs(1)
print(json.dumps([epochs(count) / (count * STEPS) * 1e6 for _ in range(3)]))
""",
}


def run(*, quick: bool) -> list[Row]:
    epochs, rounds = (5, 1) if quick else (30, 3)
    rows: list[Row] = []
    for backend in ("torch", "jax"):
        engine: list[float] = []
        hand: list[float] = []
        for _ in range(rounds):  # interleaved: the machine's speed drifts
            engine += measure(ENGINE, backend, epochs)
            hand += measure(HAND[backend], backend, epochs)
        rows.append(
            Row(
                what=f"training step, MLP, batch {BATCH}, {backend}",
                figure=statistics.median(engine),
                unit="us",
                peer="hand-written loop",
                peer_figure=statistics.median(hand),
            )
        )
    return [*rows, *tracking_cost.measure(quick=quick)]


def measure(code: str, backend: str, epochs: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.py").write_text(RECIPE)
        head = (
            f"BATCH, FEATURES, HIDDEN, CLASSES, STEPS = {BATCH}, {FEATURES}, {HIDDEN}, {CLASSES}, {STEPS_PER_EPOCH}\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", head + textwrap.dedent(code), backend, folder, str(epochs)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(result.stderr[-2000:])
        return json.loads(result.stdout.splitlines()[-1])
