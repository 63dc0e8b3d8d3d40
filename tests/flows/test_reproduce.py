"""A version is trained again from its record: in a real git repository, on both backends, compared number by number."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flows_helpers import RECIPE
from safetensors.numpy import load_file, save_file

from noa.errors import ConflictError, IntegrityError, NoaError, NotFoundError
from noa.settings import Settings, load_settings
from noa.settings.registry import SigningSettings
from noa_flows import ReproduceOptions, Tolerance, reproduce_version, run_pipeline
from noa_flows._private_files import private_files
from noa_flows._source_checkout import check_out
from noa_flows.reproduction import compare_environments, compare_weights, difference, judge
from noa_registry import ModelVersion, Registry, VersionDraft
from noa_registry.model_signing_adapter import new_key

pytestmark = [pytest.mark.torch, pytest.mark.jax]
PRESENT = ReproduceOptions(present_files=True)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Settings:
    """A project below the top of a repository, with `tiny/1` and `tiny/2`, one per backend."""
    top = tmp_path_factory.mktemp("repository")
    project = top / "models" / "tiny"
    add_empty_registry(project)
    (project / "noa.toml").write_text('[project]\nname = "tiny"\n\n[training]\nthreads = 1\n')
    (project / "recipe.py").write_text(RECIPE)
    (project / ".gitignore").write_text(".noa/\n__pycache__/\ndata/\n")
    git(top, "init", "-q")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "first")
    settings = load_settings(project).settings
    result = run_pipeline(settings, "recipe.py", backends=("torch", "jax"), overrides={"epochs": 2}, seed=3)
    assert len(result.candidates) == 2
    (top / "later.txt").write_text("the project goes on")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "second")
    return settings


@pytest.fixture
def restored(trained: Settings) -> Iterator[Settings]:
    """The project, whose recipe the test may change."""
    recipe = trained.root / "recipe.py"
    before = recipe.read_text()
    yield trained
    recipe.write_text(before)


def of_backend(settings: Settings, backend: str) -> ModelVersion:
    with Registry.open(settings.registry) as registry:
        return next(version for version in registry.versions("tiny") if version.native == backend)


def register_copy(settings: Settings, backend: str, **changes: object) -> ModelVersion:
    """Register a version of the same bytes with another record."""
    version = of_backend(settings, backend)
    with Registry.open(settings.registry) as registry:
        draft = VersionDraft(
            name="copied",
            formats={backend: registry.open_format(version, backend)},
            native=backend,
            input_example=registry.input_example(version),
            dataset_digest=version.dataset_digest,
            git_commit=version.git_commit,
            environment=version.environment,
            params=version.params,
            tags=version.tags,
        )
        return registry.register(replace(draft, **changes), actor="ada")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_version_is_trained_again_from_its_commit_and_comes_out_equal(trained: Settings, backend: str) -> None:
    version = of_backend(trained, backend)
    assert version.tags["noa.git.path"] == "models/tiny"
    assert version.tags["noa.seed"] == "3"
    # What is in the project now does not matter: the files are those of the commit.
    (trained.root / "recipe.py").write_text("raise RuntimeError('not this one')\n")
    (trained.root / "data").mkdir()
    (trained.root / "data" / "ada.key").write_text("secret")
    try:
        result = reproduce_version(trained, version.reference)
    finally:
        git(trained.root, "checkout", "-q", "--", "recipe.py")
        shutil.rmtree(trained.root / "data")
    assert (result.linked, result.left_out) == ((), ("data/ada.key",))
    assert result.verdict == "equal"
    assert (result.weights.largest, result.outputs.largest) == (0.0, 0.0)
    assert result.weights.count > 0
    assert result.metrics.keys() == {"accuracy", "loss"}
    assert all(recorded == pytest.approx(received) for recorded, received in result.metrics.values())
    assert result.environment == ()
    with Registry.open(trained.registry) as registry:
        fact = registry.evidence(version.name, version.number)[-1]
    assert (fact.kind, fact.subject, fact.passed) == ("reproduction", backend, True)
    assert (fact.values["verdict"], fact.values["left_out"]) == ("equal", ["data/ada.key"])
    assert list((trained.state_dir / "reproductions").iterdir()) == []
    assert git(trained.root, "status", "--short") == ""
    assert len(git(trained.root, "worktree", "list").splitlines()) == 1


@pytest.mark.slow
def test_another_learning_rate_comes_out_different(restored: Settings) -> None:
    recipe = restored.root / "recipe.py"
    recipe.write_text(recipe.read_text().replace("learning_rate=0.05", "learning_rate=0.2"))
    version = of_backend(restored, "torch")
    result = reproduce_version(restored, version.reference, options=PRESENT)
    assert result.verdict == "different"
    assert result.weights.largest > result.tolerance.weights
    assert "with changes sha256:" in result.notes[0]
    with Registry.open(restored.registry) as registry:
        assert registry.evidence(version.name, version.number)[-1].passed is False


def test_other_data_is_refused_before_training(restored: Settings) -> None:
    recipe = restored.root / "recipe.py"
    recipe.write_text(recipe.read_text().replace("features[:, 0] + features[:, 1] > 0", "features[:, 0] > 0"))
    said: list[str] = []
    with pytest.raises(IntegrityError, match="the split `train`, `validation`, `test` differs") as caught:
        reproduce_version(restored, of_backend(restored, "torch").reference, options=PRESENT, tell=said.append)
    assert caught.value.expected == of_backend(restored, "torch").dataset_digest
    assert "training" not in said


def test_a_broken_recipe_is_the_recipes_error(restored: Settings) -> None:
    (restored.root / "recipe.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(Exception, match="nothing_of_this_name"):
        reproduce_version(restored, of_backend(restored, "torch").reference, options=PRESENT)


@pytest.mark.parametrize("is_signer", [True, False])
def test_a_key_that_does_not_fit_is_told_before_training(trained: Settings, tmp_path: Path, is_signer: bool) -> None:
    _, public, _ = new_key(tmp_path, "other")
    signing = (
        SigningSettings(private_key=tmp_path / "missing.pem")
        if is_signer
        else SigningSettings(trusted_keys=(public,), required=True)
    )
    settings = trained.model_copy(update={"registry": trained.registry.model_copy(update={"signing": signing})})
    said: list[str] = []
    with pytest.raises(NoaError, match=r"missing\.pem|signature"):
        reproduce_version(settings, "tiny/1", tell=said.append)
    assert "training" not in said


def test_what_no_commit_holds_is_refused_unless_the_present_files_are_meant(trained: Settings) -> None:
    commit = git(trained.root, "rev-parse", "HEAD~1")
    dirty = {**of_backend(trained, "torch").tags, "noa.git.dirty": "true", "noa.git.diff": "sha256:" + "1" * 64}
    for changes, error, part in (
        ({"git_commit": f"{commit}-dirty"}, ConflictError, "no commit holds"),
        ({"git_commit": commit, "tags": dirty}, ConflictError, "no commit holds"),
        ({"git_commit": None}, NotFoundError, "outside of a git repository"),
        ({"git_commit": "1" * 40}, NotFoundError, "is not in this repository"),
        ({"tags": {"team": "x"}}, NotFoundError, "too little is recorded"),
    ):
        copied = register_copy(trained, "torch", **changes)
        with pytest.raises(error, match=part) as caught:
            reproduce_version(trained, copied.reference)
        assert "--present-files" in str(caught.value) or part == "too little is recorded"


def test_strict_refuses_another_environment_and_names_it(trained: Settings) -> None:
    environment = {**of_backend(trained, "torch").environment, "numpy": "0.0.1", "gone": "1.0"}
    copied = register_copy(trained, "torch", environment=environment)
    with pytest.raises(ConflictError, match=r"numpy 0\.0\.1") as caught:
        reproduce_version(trained, copied.reference, options=ReproduceOptions(strict=True))
    assert "gone not installed" in str(caught.value.received)


def test_data_that_is_in_no_commit_is_linked_and_python_files_are_not(trained: Settings, tmp_path: Path) -> None:
    root = trained.root
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "rows.csv").write_text("1,2\n")
    (root / "scratch.py").write_text("x = 1\n")
    try:
        made = check_out(
            root, git(root, "rev-parse", "HEAD~1"), "models/tiny", tmp_path / "source", private=private_files(trained)
        )
        assert made.linked == ("data",)
        assert made.left_out == ()
        assert (made.project / "data").is_symlink()
        assert (made.project / "data" / "rows.csv").read_text() == "1,2\n"
        assert not (made.project / "scratch.py").exists()
        assert (made.project / "recipe.py").read_text() == (root / "recipe.py").read_text()
        assert not (tmp_path / "source" / "later.txt").exists()
    finally:
        shutil.rmtree(root / "data")
        (root / "scratch.py").unlink()


def write_weights(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir()
    save_file(arrays, folder / "weights.safetensors")
    return folder


def test_weights_are_compared_by_value_and_by_bytes(tmp_path: Path) -> None:
    first = write_weights(tmp_path / "a", w=np.ones((2, 3), np.float32), b=np.zeros(3, np.float32))
    second = write_weights(tmp_path / "b", w=np.ones((2, 3), np.float32), b=np.zeros(3, np.float32))
    assert compare_weights(first, second) == (True, replace(compare_weights(first, second)[1], largest=0.0))
    near = load_file(first / "weights.safetensors")
    near["b"] = near["b"] + np.float32(1e-5)
    third = write_weights(tmp_path / "c", **near)
    is_same, gap = compare_weights(first, third)
    assert not is_same
    assert (gap.worst, gap.count) == ("b", 9)
    assert gap.largest == pytest.approx(1e-5, rel=1e-3)
    assert gap.mean == pytest.approx(1e-5 / 3, rel=1e-3)
    other = write_weights(tmp_path / "d", w=np.ones((3, 2), np.float32), b=np.zeros(3, np.float32))
    assert compare_weights(first, other) == (False, difference({"w": np.ones(1)}, {}))


def test_a_difference_that_is_no_number_is_infinite() -> None:
    gap = difference({"x": np.array([1.0, np.nan])}, {"x": np.array([1.0, 2.0])})
    assert gap.largest == float("inf")


def test_the_verdict_needs_weights_outputs_and_metrics_within_their_tolerance() -> None:
    none = difference({"x": np.zeros(2)}, {"x": np.zeros(2)})
    near = difference({"x": np.zeros(2)}, {"x": np.full(2, 1e-4)})
    far = difference({"x": np.zeros(2)}, {"x": np.ones(2)})

    def verdict(weights: object, outputs: object, gap: float, *, is_same: bool = False) -> str:
        metrics = {"accuracy": (0.5, 0.5 + gap), "new": (None, 3.0)}
        return judge(is_same=is_same, weights=weights, outputs=outputs, metrics=metrics, tolerance=Tolerance())  # type: ignore[arg-type]

    assert verdict(none, none, 0.0, is_same=True) == "equal"
    assert verdict(near, near, 0.001) == "within tolerance"
    assert verdict(far, near, 0.0) == verdict(near, far, 0.0) == verdict(near, near, 0.5) == "different"


def test_environments_are_compared_by_name() -> None:
    found = compare_environments({"python": "3.11", "torch": "2.0", "old": "1"}, {"python": "3.11", "torch": "2.1"})
    assert [(entry.name, entry.recorded, entry.present) for entry in found] == [
        ("old", "1", None),
        ("torch", "2.0", "2.1"),
    ]


KEYS_PROJECT = """
[project]
state_dir = "state"
[registry.principals]
ada = "keys/ada.pub"
[registry.signing]
private_key = "keys/signer"
[serving]
tls_key = "server_tls"
tls_certificate = "server.crt"
keys_file = "data/api_keys.json"
"""


def test_keys_and_the_state_are_not_linked_into_a_reproduction(tmp_path: Path) -> None:
    root = tmp_path / "project"
    kept = ("data/rows.csv", "data/deep/more.csv", "data/deep/loop/more.csv", "notes.txt", "outside.csv", "plain/a.csv")
    private = (
        "keys/ada.pub", "keys/ada.key", "keys/signer", "server_tls", "server.crt", "data/api_keys.json",
        "data/deep/.env.local", "data/deep/Other.PEM", "data/harmless.txt", ".env", "elsewhere/id_ed25519",
    )  # fmt: skip
    for name in (
        "recipe.py",
        "data/rows.csv",
        "data/deep/more.csv",
        "notes.txt",
        "plain/a.csv",
        *private,
        "state/noa.db",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "data/harmless.txt":
            (root / name).write_text(name)
    (root / "data" / "harmless.txt").symlink_to(root / "keys" / "signer")
    (root / "data" / "deep" / "loop").symlink_to(root / "data")
    (root / "outside.csv").symlink_to(root / "notes.txt")
    (root / "noa.toml").write_text(KEYS_PROJECT)
    git(root, "init", "-q")
    git(root, "add", "recipe.py", "noa.toml")
    git(root, "commit", "-qm", "first")
    settings = load_settings(root).settings
    commit = git(root, "rev-parse", "HEAD")
    made = check_out(root, commit, "", tmp_path / "source", private=private_files(settings))
    for name in (*private, "state", "data/deep/loop/api_keys.json"):
        assert not (made.project / name).exists(), name
    for name in kept:
        assert (made.project / name).exists() is (name != "data/deep/loop/more.csv"), name
    assert made.left_out == tuple(sorted(private))
    assert made.linked == ("data", "notes.txt", "outside.csv", "plain")
    assert (made.project / "plain").is_symlink()
