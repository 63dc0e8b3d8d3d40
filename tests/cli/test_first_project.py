"""A new user's first project, command by command, in a repository that has folders called like our rooms."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from noa_cli.__main__ import run
from warm_client import WarmProcess

Noa = Callable[..., subprocess.CompletedProcess[str]]
# Every way to write to standard output; `--json` must stay one JSON document all the same.
NOISE = """
import ctypes
import os
import subprocess

print("noise of Python")
os.write(1, b"noise of the system\\n")
subprocess.run(["echo", "noise of a child"], check=True)
ctypes.CDLL(None).puts(b"noise of C")
"""
QUICK = ("--set", "epochs=2", "--set", "data.fraction=0.2")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Path:
    """A user's repository with its own training/, registry/, serving/ and conversion/ packages."""
    root = tmp_path_factory.mktemp("users-repository")
    for package in ("training", "registry", "serving", "conversion", "flows", "core"):
        (root / package).mkdir()
        (root / package / "__init__.py").write_text(f'WHOSE = "the user\'s {package}"\n')
    result = noa_in(root)("init", "--name", "mine")
    assert result.returncode == 0, result.stderr
    add_empty_registry(root)
    recipe = root / "recipe.py"
    guard = (
        'import training\nimport registry\n\nassert training.WHOSE == "the user\'s training"\nassert registry.WHOSE\n'
    )
    recipe.write_text(recipe.read_text() + "\n" + guard + NOISE)
    settings = root / "noa.toml"
    settings.write_text(settings.read_text().replace("accuracy = 0.97", "accuracy = 0.2"))
    return root


@pytest.fixture(scope="module")
def noa(project: Path, warm_noa: WarmProcess) -> Noa:
    """Runs a command that neither trains nor serves, in the project and in a process of its own, which begins warm."""
    return functools.partial(warm_noa.noa, folder=project)


def noa_in(root: Path) -> Noa:
    def call(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "noa_cli", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=240, **options)  # type: ignore[call-overload]

    return call


@pytest.fixture(scope="module")
def trained(project: Path) -> dict[str, object]:
    result = noa_in(project)("train", "digits", "--backend", "torch,jax", "--compare", *QUICK, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def promoted(noa: Noa, trained: dict[str, object]) -> str:
    result = noa("models", "promote", str(trained["best"]), "--reason", "first", "--expect", "0", "--json")
    assert result.returncode == 0, result.stderr
    return str(trained["best"])


def test_the_losses_of_both_backends_are_compared_and_drawn(trained: dict[str, object]) -> None:
    comparison = trained["comparison"]
    assert isinstance(comparison, dict)
    assert set(comparison["curves"]) == {"torch", "jax"}
    points = len(comparison["steps"])
    assert points >= 2 and len(comparison["relative_differences"]) == points
    assert Path(comparison["plot"]).read_bytes().startswith(b"\x89PNG")


def test_both_backends_are_trained_and_registered(trained: dict[str, object]) -> None:
    candidates = trained["candidates"]
    assert isinstance(candidates, list)
    assert {row["backend"] for row in candidates} == {"torch", "jax"}
    assert {row["reference"] for row in candidates} == {"digits/1", "digits/2"}


def test_the_users_packages_stay_the_users(project: Path, trained: dict[str, object]) -> None:
    code = "import training, registry, serving; print(training.WHOSE, registry.WHOSE, serving.WHOSE)"
    result = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "the user's training the user's registry the user's serving"


def test_show_tells_where_a_version_came_from(noa: Noa, trained: dict[str, object]) -> None:
    shown = json.loads(noa("models", "show", "digits/1", "--json").stdout)
    assert set(shown["formats"]) == {shown["native"], "onnx"}
    assert shown["dataset_digest"].startswith("sha256:")
    assert shown["environment"]["python"]
    kinds = {fact["kind"] for fact in shown["evidence"]}
    assert kinds == {"metrics", "equivalence", "predictions", "calibration", "latency", "size"}
    assert noa("models", "show", "digits/1").returncode == 0


def test_history_shows_who_when_from_to_and_why(noa: Noa, promoted: str) -> None:
    entries = json.loads(noa("models", "history", "digits", "--json").stdout)
    first = entries[-1]
    assert (first["action"], first["from"], first["reason"]) == ("promote", None, "first")
    assert f"digits/{first['to']}" == promoted
    assert first["actor"]
    assert first["created_at"]


def test_a_stale_expectation_is_a_conflict(noa: Noa, promoted: str) -> None:
    result = noa("models", "promote", "digits/1", "--expect", "99")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "99" in result.stderr


def test_a_rollback_with_nothing_before_is_refused(noa: Noa, promoted: str) -> None:
    result = noa("models", "rollback", "digits")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_predict_in_process_and_stock_mlflow_give_the_same_numbers(project: Path, noa: Noa, promoted: str) -> None:
    values = [[[[0.25] * 8] * 8]] * 3
    (project / "in.json").write_text(json.dumps({"image": values}))
    ours = json.loads(noa("predict", "digits@champion", "--input", "in.json").stdout)
    code = (
        "import json, sys, numpy as np, mlflow, logging\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/digits@champion')\n"
        "print(json.dumps(model.predict(np.full((3, 1, 8, 8), 0.25, np.float32))['logits'].tolist()))"
    )
    url = f"sqlite:///{project / '.noa' / 'noa.db'}"
    stock = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, check=True, cwd=project.parent
    )
    assert np.allclose(json.loads(stock.stdout.splitlines()[-1]), ours["outputs"]["logits"], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"image": [[1, 2], [3]]}', ["ragged"]),
        ('{"image": "x"}', ["image"]),
        ('{"picture": [[1]]}', ["picture", "image"]),
        ('{"image": [[1.0]]}', ["image", "(batch, 1, 8, 8)"]),
        ("{", ["malformed JSON"]),
        ("[" * 100_000, ["nested too deeply"]),
    ],
)
def test_bad_input_names_the_field(project: Path, noa: Noa, promoted: str, content: str, words: list[str]) -> None:
    (project / "bad.json").write_text(content)
    result = noa("predict", promoted, "--input", "bad.json")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [("epoch=3", ["epoch", "Did you mean `epochs`"]), ("epochs=many", ["epochs", "expected int"])],
)
def test_each_wrong_setting_of_a_recipe_gets_one_clear_line(project: Path, setting: str, words: list[str]) -> None:
    """In a process of its own: the recipe is imported, and speaks."""
    result = noa_in(project)("train", "digits", "--set", setting)
    assert result.returncode == 1, result.stdout
    told = [line for line in result.stderr.splitlines() if not line.startswith("noise of ")]
    assert len(told) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nothing"], ["no recipe `nothing`", "digits"]),
        (["train", "missing.py"], ["missing.py"]),
        (["train", "digits", "--backend", "tensorflow"], ["no backend `tensorflow`", "torch", "jax"]),
        (["train", "digits", "--set", "epochs"], ["KEY=VALUE"]),
        (["models", "show", "nothing"], ["nothing"]),
        (["models", "show", "digits/99"], ["99"]),
        (["models", "show", "digits@nothing"], ["nothing"]),
        (["models", "promote", "digits/99"], ["99"]),
        (["serve", "digits@nothing"], ["nothing"]),
        (["serve", "nowhere"], ["no endpoint `nowhere`"]),
        (["predict", "digits/1", "--input", "missing.json"], ["no such input file"]),
        (["predict", "digits/1", "--input", "recipe.py"], [".json, .npy, .npz"]),
        (["convert", "digits/1", "--to", "tensorrt"], ["no format `tensorrt`"]),
        (["convert", "digits/1"], ["already has the format `onnx`"]),
        (["flows", "list"], ["noa up"]),
    ],
)
def test_each_wrong_argument_gets_one_clear_line(
    project: Path,
    trained: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(project)
    capfd.readouterr()
    code = run(arguments)
    out, err = capfd.readouterr()
    assert code == 1, out
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err


def test_serve_answers_and_a_used_port_is_refused(project: Path, noa: Noa, promoted: str) -> None:
    with Serving(project, "digits@champion") as url:
        port = url.rsplit(":", 1)[1]
        (project / "in.json").write_text(json.dumps({"image": [[[[0.5] * 8] * 8]]}))
        answer = json.loads(noa("predict", "digits", "--input", "in.json", "--url", url).stdout)
        assert f"{answer['model']}/{answer['version']}" == promoted
        assert answer["digest"].startswith("sha256:")
        taken = noa("serve", "digits@champion", "--port", port)
        assert taken.returncode == 1
        assert f"port {port}" in taken.stderr
        assert "in use" in taken.stderr


class Serving:
    """`noa serve` in the foreground of a process of its own, ended by Ctrl-C; nothing may be left of it."""

    def __init__(self, root: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "noa_cli", "serve", *arguments, "--port", "0", "--json"]
        self.process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        text = ""
        for line in iterate_lines(self.process):
            text += line
            if line.startswith("}"):
                break
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert self.children
        return str(json.loads(text)["url"])

    def __exit__(self, *_: object) -> None:
        os.kill(self.process.pid, signal.SIGINT)
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        deadline = time.monotonic() + 20
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in self.children):
            assert time.monotonic() < deadline, "processes are left after `noa serve` ended"
            time.sleep(0.05)


def iterate_lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    while line := process.stdout.readline():
        yield line
    raise AssertionError(process.stderr.read() if process.stderr else "the server ended")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_serve_computes_in_the_native_format_too(
    project: Path, noa: Noa, trained: dict[str, object], backend: str
) -> None:
    candidates = trained["candidates"]
    assert isinstance(candidates, list)
    reference = next(row["reference"] for row in candidates if row["backend"] == backend)
    (project / "some.json").write_text(json.dumps({"image": [[[[0.1 * i] * 8] * 8] for i in range(5)]}))
    overrides = ("-o", f"endpoints.native.model={reference}", "-o", f"endpoints.native.format={backend}")
    with Serving(project, "native", *overrides) as url:
        answer = json.loads(noa("predict", "native", "--input", "some.json", "--url", url).stdout)
    onnx = json.loads(noa("predict", reference, "--input", "some.json").stdout)
    assert np.allclose(answer["outputs"]["logits"], onnx["outputs"]["logits"], atol=1e-4)


def test_an_alias_moved_in_mlflow_is_found_never_followed_and_repaired(project: Path, noa: Noa, promoted: str) -> None:
    code = (
        "import sys, mlflow; c = mlflow.MlflowClient(sys.argv[1], sys.argv[1])\n"
        "c.set_registered_model_alias('digits', 'champion', sys.argv[2])"
    )
    url = f"sqlite:///{project / '.noa' / 'noa.db'}"
    other = "1" if promoted.endswith("/2") else "2"
    subprocess.run([sys.executable, "-c", code, url, other], capture_output=True, check=True, cwd=project.parent)
    found = noa("models", "verify")
    assert found.returncode == 1
    assert "champion" in found.stdout
    shown = json.loads(noa("models", "show", "digits@champion", "--json").stdout)
    assert shown["reference"] == promoted
    repaired = json.loads(noa("models", "verify", promoted, "--repair", "--json").stdout)
    assert any("champion" in text for text in repaired["repaired"])
    assert noa("models", "verify", promoted).returncode == 0


def test_convert_writes_a_proven_copy(project: Path, noa: Noa, trained: dict[str, object]) -> None:
    out = project / "copied"
    for reference in ("digits/1", "digits/2"):
        result = noa("convert", reference, "--output", str(out / reference.replace("/", "-")), "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["evidence"]
    assert {path.name for path in (out / "digits-1").iterdir()} >= {"model.onnx", "signature.json"}


def test_verify_finds_a_flipped_byte_and_a_tampered_version_is_not_promoted(
    project: Path, noa: Noa, promoted: str
) -> None:
    """The version is the one that was not promoted; it is put back, as other tests want it."""
    reference = "digits/1" if promoted == "digits/2" else "digits/2"
    shown = json.loads(noa("models", "show", reference, "--json").stdout)
    weights = Path(shown["formats"]["onnx"]["folder"]) / "model.onnx"
    sealed, mode = weights.read_bytes(), weights.stat().st_mode
    data = bytearray(sealed)
    data[len(data) // 2] ^= 0xFF
    (project / "one.json").write_text(json.dumps({"image": [[[[0.5] * 8] * 8]]}))
    weights.chmod(0o644)
    try:
        weights.write_bytes(data)
        assert_is_refused_everywhere(noa, reference, champion=promoted)
    finally:
        weights.write_bytes(sealed)
        weights.chmod(mode)
    assert noa("predict", reference, "--input", "one.json").returncode == 0


def assert_is_refused_everywhere(noa: Noa, reference: str, *, champion: str) -> None:
    verified = noa("models", "verify")
    assert verified.returncode == 1
    assert "model.onnx" in verified.stdout
    refused = noa("models", "promote", reference)
    assert refused.returncode == 1
    assert "model.onnx" in refused.stdout + refused.stderr
    held = json.loads(noa("models", "list", "--json").stdout)
    assert held[0]["aliases"]["champion"] == int(champion.split("/")[1])
    predicted = noa("predict", reference, "--input", "one.json")
    assert (predicted.returncode, "model.onnx" in predicted.stderr) == (1, True)
    served = noa("serve", reference, "--port", "0")
    assert served.returncode == 1
    assert len(served.stderr.splitlines()) == 1
    assert "model.onnx" in served.stderr
