"""What `noa package` writes: the model and its proof, the lean set, a Bento, a build context and manifests."""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from containerfile_kit import read_containerfile
from manifest_schemas import check_keda, check_kserve, check_kubernetes
from serving_kit import Project, affine_model, endpoint, make_project

from noa.digests import build_manifest
from noa.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from noa.settings import CacheSettings, EndpointSettings, load_settings
from noa_registry import Registry
from noa_serving.packaging import Deploying, Package, make_package
from noa_serving.packaging.kubernetes import endpoint_label, grace_s
from noa_serving.packaging.packed_model import FACTS_FILE, PackedModel, PackedVersion
from noa_serving.packaging.requirements import lean_set

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-sixteen-characters"


def make(project: Project, model: str = "digits@champion", *, name: str = "digits", **options: Any) -> Package:
    with project.registry() as registry:
        return make_package(registry, name, endpoint(model), project.settings.serving, **options)


@pytest.fixture(scope="module")
def package(content: Project) -> Package:
    return make(content)


@pytest.fixture(scope="module")
def folder(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of `digits/2`. Do not change it."""
    folder = tmp_path_factory.mktemp("packages") / "digits-2"
    package.write(folder)
    return folder


def own(folder: Path, tmp_path: Path) -> tuple[Path, str]:
    """Return a copy of a package's model to damage, and the digest that its `service.py` knows."""
    copy = tmp_path / "model"
    for path in (folder / "model").rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folder / "model")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    found = re.search(r'digest="(sha256:[0-9a-f]{64})"', (folder / "service.py").read_text())
    assert found is not None
    return copy, found[1]


# --- the model ---------------------------------------------------------------------------------------------------


def test_a_package_is_pinned_to_the_version_of_the_moment(content: Project, folder: Path) -> None:
    with content.registry() as registry:
        version = registry.resolve("digits@champion")
    facts = json.loads((folder / "model" / FACTS_FILE).read_text())
    assert (facts["model"], facts["number"], facts["digest"]) == ("digits", 2, version.digest)
    assert facts["format_digest"] == version.formats["onnx"].digest == build_manifest(folder / "model/files").digest
    settings = load_settings(folder, outside=()).settings
    assert settings.endpoints == {"digits": EndpointSettings(model="digits/2", format="onnx")}


def test_a_package_keeps_answers_as_its_endpoint_does(content: Project, tmp_path: Path) -> None:
    rule = EndpointSettings(model="digits@champion", cache=CacheSettings(max_bytes=8192, max_age_s=5.0))
    with content.registry() as registry:
        make_package(registry, "digits", rule, content.settings.serving).write(tmp_path / "package")
    settings = load_settings(tmp_path / "package", outside=()).settings
    assert settings.endpoints["digits"].cache == rule.cache


def test_the_same_version_packs_to_the_same_bytes(content: Project, package: Package, tmp_path: Path) -> None:
    written = [make(content).write(tmp_path / name) for name in ("one", "two")]
    assert written[0] == written[1]
    assert build_manifest(tmp_path / "one") == written[0]
    assert set(package.files) == {file.path for file in written[0].files}


def test_nothing_in_a_package_is_a_secret_or_a_path_of_this_machine(tmp_path: Path, empty_state: Path) -> None:
    files = {"keys_file": str(tmp_path / "keys.json"), "jwt_jwks_file": str(tmp_path / "jwks.json")}
    tokens = {"jwt_issuer": "https://issuer", "jwt_audience": "noa"}
    project = make_project(tmp_path / "p", empty_state, api_keys=[KEY], client_key=KEY, **files, **tokens)
    project.publish("digits", affine_model(2.0))
    made = make(project)
    wheel = next(data for name, data in made.texts.items() if name.endswith(".whl"))
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        inside = b"".join(archive.read(name) for name in archive.namelist())
    for data in [*made.texts.values(), inside]:
        for secret in (KEY, str(tmp_path), str(ROOT), str(Path.home()) + "/"):
            assert secret.encode() not in data
    assert b"https://issuer" in made.texts["noa.toml"]
    assert {"pyjwt", "cryptography"} <= dict(made.lean.pins).keys()


def test_what_the_server_does_differently_goes_along(tmp_path: Path, content: Project) -> None:
    serving = content.settings.serving.model_copy(
        update={
            "max_in_flight": 7,
            "timeout_s": 2.5,
            "batching": False,
            "host": "10.0.0.1",
            "allow_unauthenticated": True,
        }
    )
    with content.registry() as registry:
        make_package(registry, "digits", endpoint("digits/1"), serving).write(tmp_path / "out")
    found = load_settings(tmp_path / "out", outside=()).settings.serving
    assert (found.max_in_flight, found.timeout_s, found.batching, found.threads) == (7, 2.5, False, 1)
    assert found.allow_unauthenticated
    assert found.host == "127.0.0.1"


def test_a_packed_model_is_what_a_registry_gives(content: Project, folder: Path, tmp_path: Path) -> None:
    copy, digest = own(folder, tmp_path)
    model = PackedModel(copy, digest=digest)
    version = model.resolve("digits/2")
    with content.registry() as registry:
        there = registry.resolve("digits/2")
        assert version.signature == there.signature
        assert (version.reference, version.digest) == (there.reference, there.digest)
        example = registry.input_example(there)
    found = model.input_example(version)
    assert found.keys() == example.keys()
    assert all(np.array_equal(found[name], example[name]) for name in example)
    assert build_manifest(model.open_format(version, "onnx")) == there.formats["onnx"].manifest
    assert PackedVersion.from_json(version.to_json()) == version
    with pytest.raises(NotFoundError, match="digits/2"):
        model.resolve("digits/3")
    with pytest.raises(NotFoundError, match="onnx"):
        model.open_format(version, "torch")


@pytest.mark.parametrize("method", ["resolve", "open_format", "input_example", "close"])
def test_a_packed_model_is_called_as_a_registry_is(method: str) -> None:
    names = [list(inspect.signature(getattr(kind, method)).parameters) for kind in (PackedModel, Registry)]
    assert names[0] == names[1]


@pytest.mark.parametrize("file", ["files/model.onnx", "files/signature.json"])
def test_a_flipped_byte_of_the_model_is_refused_and_named(folder: Path, tmp_path: Path, file: str) -> None:
    copy, digest = own(folder, tmp_path)
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    model = PackedModel(copy, digest=digest)
    with pytest.raises(IntegrityError, match=re.escape(file.removeprefix("files/"))):
        model.open_format(model.read(), "onnx")


def test_missing_and_extra_files_and_a_changed_example_are_refused(folder: Path, tmp_path: Path) -> None:
    copy, digest = own(folder, tmp_path)
    model = PackedModel(copy, digest=digest)
    version = model.read()
    (copy / "files" / "more.bin").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"more\.bin"):
        model.open_format(version, "onnx")
    (copy / "files" / "more.bin").unlink()
    (copy / "files" / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        model.open_format(version, "onnx")
    (copy / "input_example.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="input_example"):
        model.input_example(version)


def test_facts_that_say_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    copy, digest = own(folder, tmp_path)
    facts = json.loads((copy / FACTS_FILE).read_text())
    (copy / FACTS_FILE).write_text(json.dumps({**facts, "number": 3}))
    with pytest.raises(IntegrityError, match=FACTS_FILE):
        PackedModel(copy, digest=digest).read()
    (copy / FACTS_FILE).unlink()
    with pytest.raises(IntegrityError, match=FACTS_FILE):
        PackedModel(copy, digest=digest).read()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"layout": 2}', b"[" * 100_000, b'{"layout": 1, "files": 3}'])
def test_facts_of_any_content_are_refused_by_name(text: bytes) -> None:
    with pytest.raises(IntegrityError, match=FACTS_FILE):
        PackedVersion.from_json(text)


@pytest.mark.local_files
def test_a_version_that_was_changed_is_not_packed(tmp_path: Path, empty_state: Path) -> None:
    project = make_project(tmp_path / "p", empty_state)
    version = project.publish("digits", affine_model(2.0))
    path = version.formats["onnx"].folder / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        make(project)


def test_a_folder_that_is_there_is_left_alone_and_nothing_half_written_stays(package: Package, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConflictError, match="out"):
        package.write(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    damaged = tmp_path / "other.onnx"
    damaged.write_bytes(b"something else")
    copies = {**package.copies, "model/files/model.onnx": damaged}
    broken = Package(
        endpoint="digits", version=package.version, lean=package.lean, image="", texts=package.texts, copies=copies
    )
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        broken.write(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.onnx", "out"]


def test_what_cannot_be_packed_is_refused_by_name(content: Project) -> None:
    with pytest.raises(NotFoundError, match="digits"):
        make(content, "digits@nobody")
    with content.registry() as registry, pytest.raises(NotFoundError, match="jax"):
        rule = EndpointSettings(model="digits/1", format="jax")
        make_package(registry, "digits", rule, content.settings.serving)
    with pytest.raises(InvalidInputError, match="no extra `cuda`"):
        make(content, extras=["cuda"])
    serving = content.settings.serving.model_copy(update={"grpc_port": 0})
    with content.registry() as registry, pytest.raises(InvalidInputError, match="gRPC port"):
        make_package(registry, "digits", endpoint("digits/1"), serving)


# --- the lean set ------------------------------------------------------------------------------------------------

ABSENT = {"torch", "jax", "jaxlib", "mlflow", "prefect", "sqlalchemy", "pandas", "onnxscript", "pyarrow", "typer"}


def test_an_onnx_endpoint_needs_neither_a_framework_nor_a_registry(package: Package) -> None:
    pins = dict(package.lean.pins)
    assert not ABSENT & pins.keys()
    assert {"bentoml", "onnx", "onnxruntime", "numpy", "uvloop", "httptools"} <= pins.keys()
    requirements = package.texts["requirements.txt"].decode().splitlines()
    assert requirements[:-1] == [f"{name}=={version}" for name, version in package.lean.pins]
    assert re.fullmatch(r"\./wheels/noa-.+\.whl", requirements[-1])


def test_the_pins_are_those_of_the_lock(package: Package) -> None:
    lock = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    known = {re.sub(r"[-_.]+", "-", name): version for name, version in lock.items()}
    assert {name: known.get(name) for name, _ in package.lean.pins} == dict(package.lean.pins)


def test_each_format_brings_its_own_library_only(content: Project) -> None:
    serving = content.settings.serving
    torch, jax = (dict(lean_set(name, serving).pins) for name in ("torch", "jax"))
    assert "torch" in torch
    assert not {"jax", "onnxruntime", "mlflow"} & torch.keys()
    assert "jax" in jax
    assert not {"torch", "onnxruntime", "mlflow"} & jax.keys()
    assert "pyarrow" in dict(lean_set("onnx", serving, extras=["arrow"]).pins)
    grpc = serving.model_copy(update={"grpc_port": 9000})
    assert "grpcio" in dict(lean_set("onnx", grpc).pins)


def test_the_wheel_holds_what_serves_and_says_so(package: Package) -> None:
    name, data = next((name, data) for name, data in package.texts.items() if name.endswith(".whl"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if name.endswith("dist-info/METADATA"))
        metadata = archive.read(f"{info}/METADATA").decode()
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        for line in record[:-1]:
            path, digest, size = line.rsplit(",", 2)
            content = archive.read(path)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(content))
        points = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert name.removeprefix("wheels/").startswith(info.removesuffix(".dist-info"))
    assert {one.split("/")[0] for one in names} == {"noa", "noa_conversion", "noa_serving", info}
    assert [line.split(",")[0] for line in record] == names
    assert re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) == list(package.lean.roots)
    assert "onnx = noa_conversion.formats.onnx_format:ADAPTER" in points
    assert licence == (ROOT / "LICENSE").read_bytes()


# --- the build context -------------------------------------------------------------------------------------------


def test_the_containerfile_is_well_formed_and_what_it_copies_is_there(folder: Path) -> None:
    found = read_containerfile((folder / "Containerfile").read_text())
    stages = [one.words for one in found if one.name == "FROM"]
    names = {words[2] for words in stages if len(words) == 3}
    ignored = (folder / ".dockerignore").read_text().split()
    for copy in (one for one in found if one.name == "COPY"):
        *sources, target = copy.words
        assert target.startswith("/")
        if "from" in copy.flags:
            assert copy.flags["from"] in names
            continue
        for source in sources:
            assert (folder / source).exists(), source
            assert source not in ignored
    last = [one for one in found if one.stage == len(stages) - 1]
    by_name = {one.name: one.value for one in last}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", by_name["USER"])
    assert by_name["EXPOSE"] == "3000"
    assert "/v2/health/ready" in by_name["HEALTHCHECK"]
    assert json.loads(by_name["ENTRYPOINT"])[:3] == ["bentoml", "serve", "/package"]
    assert all(re.search(r":\d+\.\d+-slim-\w+$", words[0]) for words in stages)
    assert "--no-cache-dir" in next(one.value for one in found if one.name == "RUN" and "pip install" in one.value)


def test_the_base_image_can_be_named_with_its_digest(content: Project) -> None:
    base = "registry.example/python@sha256:" + "0" * 64
    text = make(content, base_image=base).texts["Containerfile"].decode()
    assert [one.words[0] for one in read_containerfile(text) if one.name == "FROM"] == [base, base]


def test_the_bentofile_includes_what_service_py_needs(folder: Path) -> None:
    table = yaml.safe_load((folder / "bentofile.yaml").read_text())
    assert all((folder / path).exists() for path in table["include"])
    compile((folder / "service.py").read_text(), "service.py", "exec")


# --- a cluster ---------------------------------------------------------------------------------------------------


def objects(made: Package, prefix: str = "kubernetes/") -> dict[str, dict[str, Any]]:
    return {
        name.removeprefix(prefix): yaml.safe_load(text)
        for name, text in made.texts.items()
        if name.startswith(prefix) and "kustomization" not in name
    }


SETTINGS: list[dict[str, object]] = [
    {},
    {"workers": 4, "threads": 2, "grpc_port": 9000, "timeout_s": 120.5, "allow_unauthenticated": True},
]


@pytest.mark.parametrize("serving", SETTINGS, ids=["plain", "grpc"])
@pytest.mark.parametrize("autoscaler", ["hpa", "keda"])
def test_the_published_schemas_take_every_manifest(
    content: Project, serving: dict[str, object], autoscaler: Any
) -> None:
    settings = content.settings.serving.model_copy(update=serving)
    deploying = Deploying(image="registry.example/team/digits:2", autoscaler=autoscaler)
    with content.registry() as registry:
        made = make_package(registry, "Digits_v2", endpoint("digits/2"), settings, deploying=deploying)
    found = objects(made)
    kinds = {table["kind"] for table in found.values()}
    scaler = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[autoscaler]
    assert kinds == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", scaler}
    for table in found.values():
        (check_keda if table["kind"] == "ScaledObject" else check_kubernetes)(table)
    check_kserve(yaml.safe_load(made.texts["kserve/inference-service.yaml"]))
    listed = yaml.safe_load(made.texts["kubernetes/kustomization.yaml"])["resources"]
    assert listed == sorted(found)


def test_schemas_refuse_what_is_wrong(package: Package) -> None:
    """The checks above mean something."""
    deployment = objects(package)["deployment.yaml"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(Exception, match="readinesProbe"):
        check_kubernetes(deployment)
    service = yaml.safe_load(package.texts["kserve/inference-service.yaml"])
    service["spec"]["predictor"]["maxReplica"] = 3
    with pytest.raises(AssertionError, match="maxReplica"):
        check_kserve(service)


def test_a_pod_has_no_root_no_writable_disk_and_time_to_finish(content: Project, package: Package) -> None:
    pod = objects(package)["deployment.yaml"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]
    paths = {name: server[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health/startup", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}
    drain_s = content.settings.serving.timeout_s + 5  # what the server takes at most after SIGTERM
    leave_s = int(re.findall(r"sleep\((\d+)\)", server["lifecycle"]["preStop"]["exec"]["command"][2])[0])
    assert pod["terminationGracePeriodSeconds"] == grace_s(content.settings.serving) > drain_s + leave_s


def test_the_parts_of_a_cluster_find_each_other(package: Package) -> None:
    found = objects(package)
    deployment = found["deployment.yaml"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        found["service.yaml"]["spec"]["selector"],
        found["pod-disruption-budget.yaml"]["spec"]["selector"]["matchLabels"],
        found["network-policy.yaml"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in found["service.yaml"]["spec"]["ports"]} <= ports
    target = found["horizontal-pod-autoscaler.yaml"]["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]


def test_a_larger_model_and_more_workers_ask_for_more_memory(content: Project, package: Package) -> None:
    from noa_serving.packaging.kubernetes import pod_spec

    def memory(size: int, workers: int) -> int:
        serving = content.settings.serving.model_copy(update={"workers": workers})
        pod: Any = pod_spec(serving, Deploying(image="x"), "x", size_bytes=size)
        resources = pod["containers"][0]["resources"]
        asked, most = (int(resources[kind]["memory"].removesuffix("Mi")) for kind in ("requests", "limits"))
        assert asked < most
        return asked

    assert memory(1 << 30, 1) >= 2048 + memory(1 << 20, 1)
    assert memory(1 << 20, 4) == 4 * memory(1 << 20, 1)


def test_keys_come_from_a_secret_unless_anybody_may_call(content: Project, package: Package) -> None:
    pod = objects(package)["deployment.yaml"]["spec"]["template"]["spec"]
    assert {"name": "keys", "secret": {"secretName": "noa-digits-keys", "defaultMode": 0o440}} in pod["volumes"]
    assert pod["containers"][0]["env"] == [
        {"name": "NOA__SERVING__KEYS_FILE", "value": "/etc/noa-keys/api-keys.json"},
    ]
    serving = content.settings.serving.model_copy(update={"allow_unauthenticated": True})
    with content.registry() as registry:
        open_one = make_package(registry, "digits", endpoint("digits/2"), serving)
    assert "noa-keys" not in open_one.texts["kubernetes/deployment.yaml"].decode()


@pytest.mark.parametrize(
    ("name", "label"),
    [("digits", "noa-digits"), ("Digits_v2.1", "noa-digits-v2-1"), ("a" * 80, "noa-" + "a" * 46), ("x-", "noa-x")],
)
def test_labels_are_what_kubernetes_allows(name: str, label: str) -> None:
    assert endpoint_label(name) == label
