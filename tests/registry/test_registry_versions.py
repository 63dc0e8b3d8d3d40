from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from noa.digests import build_manifest
from noa.errors import ConflictError, GateRefusedError, IntegrityError, InvalidInputError, NotFoundError, SignatureError
from noa.settings import RegistrySettings
from noa_registry import ModelVersion, Registry, VersionDraft
from s3_server import StoredFiles


def test_register_gives_back_everything_that_was_in_the_draft(registry: Registry, formats: Any) -> None:
    draft = formats.draft(run_id="a" * 32, tags={"team": "vision"}, description="the first")
    version = registry.register(draft, actor="ada")
    assert (version.reference, version.native, version.created_by) == ("digits/1", "torch", "ada")
    assert {name: sealed.digest for name, sealed in version.formats.items()} == {
        name: formats.digest(name) for name in ("torch", "onnx")
    }
    assert version.signature == formats.signature
    assert (version.dataset_digest, version.run_id, version.git_commit) == (draft.dataset_digest, "a" * 32, "0" * 40)
    assert (version.params, version.tags, version.description) == ({"epochs": 3}, {"team": "vision"}, "the first")
    assert version.environment == {"python": "3.11.7"}
    assert registry.resolve("digits/1") == version
    np.testing.assert_array_equal(registry.input_example(version)["x"], draft.input_example["x"])


def test_versions_are_numbered_per_model_and_listed_newest_first_in_pages(registry: Registry, formats: Any) -> None:
    for _ in range(3):
        registry.register(formats.draft(), actor="ada")
    other = registry.register(formats.draft(name="other"), actor="ada")
    assert other.number == 1
    assert [v.number for v in registry.versions("digits")] == [3, 2, 1]
    assert [v.number for v in registry.versions("digits", limit=2, offset=1)] == [2, 1]
    assert registry.versions("digits", offset=3) == []
    assert [(m.name, m.versions, m.newest) for m in registry.models()] == [("digits", 3, 3), ("other", 1, 1)]


def test_a_bare_name_means_the_newest_version(registry: Registry, formats: Any) -> None:
    registry.register(formats.draft(), actor="ada")
    registry.register(formats.draft(), actor="ada")
    assert registry.resolve("digits").number == 2


def test_what_does_not_exist_is_refused_with_what_does(registry: Registry, formats: Any) -> None:
    with pytest.raises(NotFoundError, match="none is registered yet"):
        registry.resolve("digits@champion")
    registry.register(formats.draft(), actor="ada")
    with pytest.raises(NotFoundError, match="`digits`"):
        registry.resolve("digit")
    with pytest.raises(NotFoundError, match="up to 1"):
        registry.resolve("digits/2")
    with pytest.raises(NotFoundError, match="none is yet"):
        registry.resolve("digits@champion")
    registry.promote("digits", 1, alias="staging", reason="try", actor="ada")
    with pytest.raises(NotFoundError, match=r"`staging` \(version 1\)"):
        registry.resolve("digits@champion")
    with pytest.raises(NotFoundError, match="no model `digit`"):
        registry.versions("digit")
    with pytest.raises(NotFoundError, match="no model `digit`"):
        registry.history("digit")
    assert registry.resolve_digest("digits", "champion") is None


def test_equal_content_has_an_equal_native_digest_but_each_version_its_own(registry: Registry, formats: Any) -> None:
    first, second = (registry.register(formats.draft(), actor="ada") for _ in range(2))
    assert first.formats["torch"].digest == second.formats["torch"].digest
    assert first.folder != second.folder
    assert registry.resolve("digits/1").digest == first.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../up"}, "cannot be a name"),
        ({"native": "jax"}, "lacks its native format"),
        ({"formats": {}}, "lacks its native format"),
        ({"dataset_digest": ""}, "dataset digest"),
        ({"params": {"thing": object()}}, "cannot be stored"),
    ],
)
def test_a_draft_that_contradicts_itself_is_refused_before_anything_is_written(
    registry: Registry, stored: StoredFiles, formats: Any, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        registry.register(formats.draft(**change), actor="ada")
    assert registry.models() == []
    assert stored.all() == set()


def test_an_input_example_that_does_not_fit_the_signature_is_refused(registry: Registry, formats: Any) -> None:
    with pytest.raises(SignatureError, match="wrong shape"):
        registry.register(formats.draft(input_example={"x": np.ones((2, 5), np.float32)}), actor="ada")
    with pytest.raises(SignatureError, match="missing"):
        registry.register(formats.draft(input_example={}), actor="ada")


def test_formats_with_different_signatures_are_refused(
    registry: Registry, formats: Any, make_formats: Callable[[int], Any]
) -> None:
    text = (formats.onnx / "signature.json").read_text()
    (formats.onnx / "signature.json").write_text(text.replace('"logits"', '"scores"'))
    with pytest.raises(InvalidInputError, match="another signature"):
        registry.register(formats.draft(), actor="ada")


def test_a_pickle_or_a_link_is_refused(registry: Registry, formats: Any, tmp_path: Path) -> None:
    (formats.torch / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidInputError, match="pickle"):
        registry.register(formats.draft(), actor="ada")
    (formats.torch / "model.pkl").unlink()
    (formats.torch / "more").symlink_to(tmp_path)
    with pytest.raises(InvalidInputError, match="link"):
        registry.register(formats.draft(evidence=()), actor="ada")
    assert registry.models() == []


def test_nobody_is_not_an_actor(registry: Registry, formats: Any) -> None:
    with pytest.raises(InvalidInputError, match="actor"):
        registry.register(formats.draft(), actor=" ")


def test_sealed_files_are_read_only_and_independent_of_the_source(registry: Registry, formats: Any) -> None:
    version = registry.register(formats.draft(), actor="ada")
    (formats.onnx / "model.onnx").write_bytes(b"changed afterwards")
    registry.verify("digits", 1)
    registry.open_format(version, "onnx")
    registry.open_wrapper(version)
    assert all(path.stat().st_mode & 0o222 == 0 for path in version.folder.rglob("*") if path.is_file())


def test_a_flipped_byte_is_refused_on_load_and_the_file_named(
    registry: Registry, version: ModelVersion, stored: StoredFiles
) -> None:
    stored.flip("digits", version.uid, "formats/onnx/model.onnx")
    for attempt in (
        lambda: registry.open_format(version, "onnx"),
        lambda: registry.load("digits/1"),
        lambda: registry.verify("digits", 1, format="onnx"),
    ):
        with pytest.raises(IntegrityError, match=r"model\.onnx") as caught:
            attempt()
        assert caught.value.facts["file"] == "formats/onnx/model.onnx"
    assert registry.open_format(version, "torch").is_dir()


@pytest.mark.parametrize("file", ["MLmodel", "requirements.txt", "input_example.safetensors"])
def test_a_changed_wrapper_is_refused(
    registry: Registry, version: ModelVersion, stored: StoredFiles, file: str
) -> None:
    stored.flip("digits", version.uid, file)
    with pytest.raises(IntegrityError, match=f"`{file}` was changed"):
        registry.verify("digits", 1)
    with pytest.raises(IntegrityError, match=f"`{file}` was changed"):
        registry.open_wrapper(version)


def test_missing_and_extra_files_are_named(registry: Registry, version: ModelVersion, stored: StoredFiles) -> None:
    stored.write("digits", version.uid, "code.py", b"print('hi')")
    with pytest.raises(IntegrityError, match=r"`code\.py` was added"):
        registry.verify("digits", 1)
    stored.remove("digits", version.uid, "formats/torch/weights.safetensors")
    with pytest.raises(IntegrityError, match=r"`formats/torch/weights\.safetensors` is missing"):
        registry.verify("digits", 1)
    stored.write("digits", version.uid, "formats/onnx/extra.bin", b"")
    with pytest.raises(IntegrityError, match=r"`formats/onnx/extra\.bin` was added"):
        registry.verify("digits", 1, format="onnx")


@pytest.mark.parametrize("file", ["formats/onnx/model.onnx", "formats/torch/weights.safetensors", "MLmodel"])
def test_place_and_file_of_a_failed_verification_lead_to_what_differs(
    registry: Registry, version: ModelVersion, stored: StoredFiles, file: str
) -> None:
    stored.flip("digits", version.uid, file)
    with pytest.raises(IntegrityError) as caught:
        registry.verify("digits", 1)
    place = str(caught.value.where)
    assert registry.location(version) in (place, f"file://{place}")
    assert caught.value.facts["file"] == file


def test_the_place_of_a_format_that_was_added_later_is_its_own(
    registry: Registry, stored: StoredFiles, formats: Any
) -> None:
    registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    version = registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[], actor="bob")
    uid = version.formats["onnx"].uid
    assert uid != version.uid
    stored.flip("digits", uid, "formats/onnx/model.onnx")
    with pytest.raises(IntegrityError) as caught:
        registry.verify("digits", 1)
    assert str(caught.value.where).endswith(f"digits/{uid}")


def test_a_changed_input_example_is_not_given_out(
    registry: Registry, version: ModelVersion, stored: StoredFiles
) -> None:
    stored.flip("digits", version.uid, "input_example.safetensors")
    with pytest.raises(IntegrityError, match="input_example"):
        registry.input_example(version)


def test_load_runs_the_sealed_model(registry: Registry, version: ModelVersion, formats: Any) -> None:
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    result = registry.load("digits/1").run({"x": x})
    np.testing.assert_allclose(result["logits"], x @ formats.weights, rtol=1e-6, atol=1e-6)
    with pytest.raises(NotFoundError, match="no format `jax`"):
        registry.load("digits/1", format="jax")


def test_add_format_seals_one_more_and_changes_nothing_else(registry: Registry, formats: Any) -> None:
    before = registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    after = registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="bob")
    assert sorted(after.formats) == ["onnx", "torch"]
    assert (after.digest, after.formats["torch"]) == (before.digest, before.formats["torch"])
    registry.verify("digits", 1)
    assert registry.check("digits", 1).passed
    with pytest.raises(ConflictError, match="already"):
        registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[], actor="bob")


def test_a_live_version_takes_a_format_only_with_passed_equivalence(registry: Registry, formats: Any) -> None:
    registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="ada")
    registry.promote("digits", 1, reason="go", actor="ada")
    for facts in ([], [formats.equivalence(passed=False)], [formats.equivalence(source_digest="sha256:" + "0" * 64)]):
        with pytest.raises(GateRefusedError, match="live"):
            registry.add_format("digits", 1, "onnx", formats.onnx, evidence=facts, actor="bob")
        assert sorted(registry.resolve("digits/1").formats) == ["torch"]
        assert registry.evidence("digits", 1) == []
    added = registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="bob")
    assert sorted(added.formats) == ["onnx", "torch"]


def test_evidence_is_kept_in_order_and_comes_back_equal(
    registry: Registry, version: ModelVersion, formats: Any
) -> None:
    facts = [formats.metrics(accuracy=0.5), formats.metrics(accuracy=float("nan"), loss=float("inf"))]
    registry.attach("digits", 1, facts)
    found = registry.evidence("digits", 1)
    assert found[1:] == facts
    assert found[2].values["metrics"] == {"accuracy": "nan", "loss": "inf"}
    with pytest.raises(NotFoundError, match="no version 9"):
        registry.attach("digits", 9, facts)


def test_threads_share_a_registry(registry: Registry, formats: Any) -> None:
    numbers: list[int] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                numbers.append(registry.register(formats.draft(), actor="ada").number)
                registry.resolve("digits")
        except BaseException as exc:  # noqa: BLE001  # shown by the assertion below
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(numbers) == list(range(1, 19))


@pytest.mark.local_files
def test_a_registry_survives_moving_its_folder(
    registry: Registry, version: ModelVersion, settings: RegistrySettings, tmp_path: Path
) -> None:
    registry.close()
    (tmp_path / "state").rename(tmp_path / "moved")
    moved = RegistrySettings(
        database_url=settings.database_url.replace(f"{tmp_path}/state/", f"{tmp_path}/moved/"),
        artifact_dir=tmp_path / "moved" / "artifacts",
    )
    with Registry.open(moved) as opened:
        opened.verify("digits", 1)
        assert (
            build_manifest(opened.open_format(opened.resolve("digits/1"), "onnx")).digest
            == version.formats["onnx"].digest
        )


def test_an_unknown_database_or_a_relative_folder_is_refused(tmp_path: Path) -> None:
    for url in ("mysql://h/db", "sqlite://", "sqlite:///:memory:", "nonsense"):
        with pytest.raises(InvalidInputError, match="database"):
            Registry.open(RegistrySettings(database_url=url, artifact_dir=tmp_path))
    with pytest.raises(InvalidInputError, match="not absolute"):
        Registry.open(RegistrySettings(database_url=f"sqlite:///{tmp_path}/noa.db", artifact_dir=Path("relative")))


def test_drafts_are_frozen(formats: Any) -> None:
    draft: VersionDraft = formats.draft()
    with pytest.raises(AttributeError):
        draft.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("side", ["inputs", "outputs", "dtype", "rank", "no graph", "free", "fixed", "fixed output"])
def test_a_format_whose_own_tensors_are_not_those_of_the_signature_is_refused(
    registry: Registry, make_formats: Callable[[int], Any], side: str
) -> None:
    formats = make_formats(1)
    path = formats.onnx / "model.onnx"
    model = onnx.load(path)
    if side == "inputs":
        model.graph.input[0].name = model.graph.node[0].input[0] = "features"
    elif side == "outputs":
        model.graph.output[0].name = model.graph.node[0].output[0] = "scores"
    elif side == "dtype":
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    elif side == "rank":
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    elif side == "free":
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    elif side == "fixed":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    elif side == "fixed output":
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    path.write_bytes(b"no graph" if side == "no graph" else model.SerializeToString())

    with pytest.raises(InvalidInputError, match=r"`model\.onnx`"):
        registry.register(formats.draft(), actor="ada")
    with pytest.raises(NotFoundError):
        registry.resolve("digits")

    only_torch = make_formats(2).draft(formats={"torch": make_formats(3).torch}, evidence=())
    version = registry.register(only_torch, actor="ada")
    with pytest.raises(InvalidInputError, match=r"`model\.onnx`"):
        registry.add_format("digits", version.number, "onnx", formats.onnx, evidence=(), actor="ada")
