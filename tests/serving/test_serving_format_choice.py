"""`format = "auto"`: the fastest format that is proven, the same in all workers, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import Project, affine_model, make_project, slow_model, wait_until

from noa.digests import build_manifest
from noa.errors import InvalidInputError
from noa.settings import EndpointSettings
from noa_cli.commands.endpoints import _print_one
from noa_conversion.latency import describe_hardware
from noa_registry import BatchLatency, Evidence, Hardware, LatencyEvidence, ModelVersion, VersionDraft
from noa_registry.evidence import equivalence_evidence
from noa_serving import Client, start_server
from noa_serving import _format_choice as format_choice
from noa_serving._application import describe
from noa_serving._board import create_board
from noa_serving._crew import Choice, Content, Crew, join_crew
from noa_serving._endpoint import Endpoint
from noa_serving._format_choice import choose_format
from noa_serving._runtimes import Runtimes
from noa_serving.live import compare, look
from noa_serving.packaging import make_package

Build = Callable[[Path], Mapping[str, np.ndarray]]
DATASET = "sha256:" + "d" * 64
RUNTIMES = Runtimes(threads=1)
HERE = describe_hardware("onnx", 1)
ELSEWHERE = replace(HERE, cpu="another processor")
SLIM = "onnx-slim"


def publish(
    project: Project,
    formats: Mapping[str, Build],
    *,
    proven: Mapping[str, bool | None] | None = None,
    times: Mapping[str, tuple[Hardware, float]] | None = None,
) -> ModelVersion:
    """Register `digits` in several formats, the first of which is native. `proven` says what the comparison found."""
    drafts = Path(project.settings.root) / "drafts" / f"{np.random.default_rng().integers(1 << 60)}"
    folders = {name: drafts / name for name in formats}
    example: Mapping[str, np.ndarray] = {}
    for name, build in formats.items():
        folders[name].mkdir(parents=True)
        example = build(folders[name])
    digests = {name: build_manifest(folder).digest for name, folder in folders.items()}
    native = next(iter(formats))
    evidence: list[Evidence] = []
    for name in list(formats)[1:]:
        passed = True if proven is None else proven.get(name, True)
        if passed is not None:
            evidence.append(
                equivalence_evidence(
                    source=native,
                    source_digest=digests[native],
                    target=name,
                    target_digest=digests[name],
                    passed=passed,
                    values={"max_abs_error": 0.0},
                )
            )
    for name, (hardware, p50_ms) in (times or {}).items():
        row = BatchLatency(batch=1, runs=1000, p50_ms=p50_ms, p99_ms=2 * p50_ms, max_ms=3 * p50_ms, cpu_share=1.0)
        evidence.append(
            LatencyEvidence(subject=name, digest=digests[name], hardware=hardware, batches=(row,)).to_evidence()
        )
    draft = VersionDraft(
        name="digits",
        formats=folders,
        native=native,
        input_example=example,
        dataset_digest=DATASET,
        evidence=tuple(evidence),
    )
    with project.registry() as registry:
        return registry.register(draft, actor="tests")


def choose(project: Project, version: ModelVersion, runtimes: Runtimes = RUNTIMES) -> Choice:
    with project.registry() as registry:
        return choose_format(registry, version, runtimes)


def auto(model: str = "digits/1") -> EndpointSettings:
    return EndpointSettings(model=model, format="auto")


BOTH: Mapping[str, Build] = {"onnx": affine_model(2.0), SLIM: affine_model(2.0)}


def test_the_only_format_is_chosen_and_said_to_be_it(project: Project) -> None:
    version = publish(project, {"onnx": affine_model(2.0)})
    assert choose(project, version) == ("onnx", "the only format")


def test_the_fastest_by_the_evidence_of_one_machine_is_chosen(project: Project) -> None:
    version = publish(project, BOTH, times={"onnx": (HERE, 2.0), SLIM: (HERE, 1.0)})
    found = choose(project, version)
    assert found.format == SLIM
    assert "the fastest of 2 proven formats: `onnx-slim` 1 ms, `onnx` 2 ms for one row (evidence of" in found.reason


def test_a_format_that_is_hardly_faster_does_not_replace_onnx(project: Project) -> None:
    version = publish(project, BOTH, times={"onnx": (HERE, 1.0), SLIM: (HERE, 0.97)})
    found = choose(project, version)
    assert found.format == "onnx"
    assert "none is clearly faster" in found.reason


def test_this_machine_counts_before_another_and_times_of_two_machines_are_not_compared(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = publish(project, BOTH, times={"onnx": (ELSEWHERE, 2.0), SLIM: (ELSEWHERE, 1.0)})
    assert "another processor" in choose(project, other).reason
    measured = {"onnx": 1.0, SLIM: 5.0}
    monkeypatch.setattr(format_choice, "_measure", lambda *_: measured)
    mixed = publish(project, BOTH, times={"onnx": (HERE, 2.0), SLIM: (ELSEWHERE, 1.0)})
    found = choose(project, mixed)
    assert found.format == "onnx"
    assert found.reason.endswith("(measured here)")


def test_without_evidence_the_formats_are_measured(project: Project) -> None:
    def slow(folder: Path) -> Mapping[str, np.ndarray]:
        return slow_model(folder, steps=40, size=128)

    def quick(folder: Path) -> Mapping[str, np.ndarray]:
        return slow_model(folder, steps=1, size=128)

    version = publish(project, {"onnx": slow, SLIM: quick})
    found = choose(project, version)
    assert found.format == SLIM
    assert found.reason.endswith("(measured here)")


@pytest.mark.parametrize("passed", [False, None], ids=["failed", "no evidence"])
def test_what_is_not_proven_is_never_chosen(project: Project, passed: bool | None) -> None:
    times = {"onnx": (HERE, 2.0), SLIM: (HERE, 0.1)}
    version = publish(project, BOTH, proven={SLIM: passed}, times=times)
    found = choose(project, version)
    assert found == ("onnx", "the only one of 2 formats that can be chosen (it was made in it)")


def test_a_format_whose_library_is_missing_is_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(project, BOTH)
    monkeypatch.setattr(format_choice, "_modules", lambda name: ("no_such_library",) if name == SLIM else ())
    assert choose(project, version).format == "onnx"
    monkeypatch.setattr(format_choice, "_modules", lambda _: ("no_such_library",))
    with pytest.raises(InvalidInputError, match="`onnx-slim` needs `no_such_library`, which is not installed here"):
        choose(project, version)


def test_a_format_whose_files_were_changed_is_not_chosen_by_measurement(project: Project) -> None:
    version = publish(project, BOTH)
    path = version.formats[SLIM].folder / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"no graph")
    assert choose(project, version).format == "onnx"


@given(times=st.lists(st.floats(min_value=1e-4, max_value=1e4), min_size=1, max_size=6))
def test_what_is_chosen_is_nearly_the_fastest_and_preferred_where_it_is_one_of_them(times: list[float]) -> None:
    table = {f"format-{index}": value for index, value in enumerate(times)}
    chosen = format_choice._fastest(table, "test").format
    assert 0.95 * table[chosen] <= min(times)
    if times[0] * 0.95 <= min(times):
        assert chosen == "format-0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "server"
    place.mkdir()
    create_board(place, size=2, endpoints=1)
    return place


def crew_of(folder: Path) -> Crew:
    return join_crew(folder, ["digits"], size=2, timeout_s=60)


class Chooser:
    """Chooses another format each time, as measurements on a busy machine might."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> Choice:
        self.calls += 1
        return Choice(("onnx", SLIM)[self.calls % 2], f"call {self.calls}")


def test_all_workers_load_what_one_of_them_has_chosen_also_one_that_comes_later(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(project, BOTH)
    chooser = Chooser()
    monkeypatch.setattr("noa_serving._endpoint.choose_format", chooser)
    pair = [Endpoint("digits", auto(), threads=1, crew=crew_of(folder)) for _ in range(2)]
    with project.registry() as registry:
        for one in pair:
            one.follow(registry)
        wait_until(lambda: all(one.follow(registry) or one.current is not None for one in pair))
        assert [one.current and one.current.format for one in pair] == [SLIM, SLIM]
        pair[1].crew.leave()
        pair[1].crew.close()
        again = Endpoint("digits", auto(), threads=1, crew=crew_of(folder))
        again.follow(registry)
    assert chooser.calls == 1
    assert again.current is not None
    assert (again.current.format, again.current.choice) == (SLIM, "call 1")
    assert describe(again)["format_choice"] == "call 1"


def test_another_worker_chooses_where_the_one_that_was_to_is_gone(folder: Path) -> None:
    first, second = crew_of(folder), crew_of(folder)
    first._publish(lambda me: replace(me, pid=os.getpid() + 1))
    ballot, is_new = first.open_ballot("digits", Content(1, "sha256:1"), 0.0)
    assert is_new
    assert first.is_chooser("digits", ballot.id)
    assert not second.is_chooser("digits", ballot.id)
    first.close()
    assert second.is_chooser("digits", ballot.id)
    assert second.choose("digits", ballot.id, Choice("onnx", "late")) == ("onnx", "late")
    assert not second.is_chooser("digits", ballot.id), "it is chosen"
    assert second.choose("digits", ballot.id, Choice(SLIM, "later")) == ("onnx", "late")
    assert second.choose("digits", ballot.id + 1, Choice(SLIM, "of another ballot")) is None


def test_a_version_without_a_format_to_choose_is_refused_with_the_command_that_proves_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(project, BOTH, proven={SLIM: None})
    monkeypatch.setattr(format_choice, "_modules", lambda name: ("no_such_library",) if name == "onnx" else ())
    one = Endpoint("digits", auto(), threads=1)
    with project.registry() as registry:
        one.follow(registry)
    assert one.failure is not None
    assert "no format of `digits/1` can be chosen" in one.failure.reason
    assert "`onnx-slim` is not proven: no evidence for these bytes" in one.failure.reason
    assert "noa convert digits/1 --to onnx-slim" in one.failure.reason


@pytest.mark.bentoml
def test_a_server_shows_the_choice_of_all_its_workers_and_why(
    tmp_path: Path, empty_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path, empty_state, workers=2)
    publish(project, BOTH, times={"onnx": (ELSEWHERE, 2.0), SLIM: (ELSEWHERE, 1.0)})
    log = tmp_path / "server.log"
    with start_server(project.settings, endpoints={"digits": auto()}, log_file=log) as process:
        address = process.wait_ready()
        formats: set[str] = set()
        for _ in range(8):  # connections of their own, which any worker may take
            with Client(address.url) as client:
                row = client.status()["endpoints"]["digits"]
                formats.add(row["format"])
                assert "the fastest of 2 proven formats" in row["format_choice"]
        assert formats == {SLIM}
        from noa_serving import running_servers

        (server,) = running_servers(project.settings.state_dir)
        seen = look(server)
        (shown,) = compare(seen, seen)
        assert shown.format == SLIM
        assert shown.format_choice is not None
        assert "`onnx-slim` 1 ms" in shown.format_choice
        _print_one(shown)
        text = " ".join(capsys.readouterr().out.split())
        assert "chosen onnx-slim: the fastest of 2 proven formats" in text
        assert "runtime onnxruntime CPUExecutionProvider" in text
    assert "as onnx-slim: the fastest of 2 proven formats" in log.read_text()


def test_a_package_has_the_format_that_was_chosen_when_it_was_made(project: Project, tmp_path: Path) -> None:
    publish(project, BOTH, times={"onnx": (HERE, 2.0), SLIM: (HERE, 1.0)})
    with project.registry() as registry:
        made = make_package(registry, "digits", auto(), project.settings.serving)
    assert made.version.format.name == SLIM
    made.write(tmp_path / "package")
    assert 'format = "onnx-slim"' in (tmp_path / "package" / "noa.toml").read_text()
    assert json.loads((tmp_path / "package" / "model" / "packed.json").read_text())["format"] == SLIM
