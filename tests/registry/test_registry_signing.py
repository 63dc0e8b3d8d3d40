"""Signing: what is sealed carries a signature, and what does not verify is never opened, promoted or served."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import select

from noa.errors import GateRefusedError, IntegrityError, InvalidInputError, ServiceError
from noa.settings import RegistrySettings, SigningSettings
from noa_registry import ModelVersion, Registry
from noa_registry.model_signing_adapter import load_signer, new_key
from noa_registry.signing import RECORD_FILE, WHOLE_VERSION, StoredSignature, insert_signatures, record_of
from noa_registry.tables import outbox, signatures

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

Opened = Callable[[SigningSettings | None], Registry]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the key pairs `ours` and `theirs`."""
    folder = tmp_path / "keys"
    for name in ("ours", "theirs"):
        new_key(folder, name)
    return folder


@pytest.fixture
def open_with(settings: RegistrySettings) -> Iterator[Opened]:
    """Opens the same registry with other settings of signing."""
    opened: list[Registry] = []

    def open_it(signing: SigningSettings | None) -> Registry:
        update = {} if signing is None else {"signing": signing}
        opened.append(Registry.open(settings.model_copy(update=update)))
        return opened[-1]

    yield open_it
    for registry in opened:
        registry.close()


def signer_of(keys: Path, name: str = "ours", **more: object) -> SigningSettings:
    return SigningSettings.model_validate({"private_key": keys / f"{name}.pem", **more})


def trusting(keys: Path, *names: str, required: bool = False) -> SigningSettings:
    return SigningSettings(trusted_keys=tuple(keys / f"{name}.pub.pem" for name in names), required=required)


def add_rows(registry: Registry, version: ModelVersion, rows: list[StoredSignature]) -> None:
    """Write signature rows as somebody would who may write to the database."""
    with registry._database.write() as connection:
        insert_signatures(connection, version.name, version.number, rows)


def test_registering_signs_the_record_and_every_format_in_the_same_transaction(
    open_with: Opened, keys: Path, formats: Formats
) -> None:
    registry = open_with(signer_of(keys))
    version = registry.register(formats.draft(), actor="ada")

    rows = registry.signatures.stored(version)

    assert {row.subject: row.digest for row in rows} == {
        WHOLE_VERSION: version.digest,
        "torch": version.formats["torch"].digest,
        "onnx": version.formats["onnx"].digest,
    }
    assert all("key `ours` (sha256:" in row.identity for row in rows)
    assert registry.open_format(version, "onnx").is_dir()
    registry.verify("digits", 1)


def test_a_registration_that_fails_late_leaves_no_signature(
    settings: RegistrySettings, keys: Path, formats: Formats
) -> None:
    def stop(step: str) -> None:
        if step == "rows written":
            raise RuntimeError(step)

    signed = settings.model_copy(update={"signing": signer_of(keys)})
    with Registry.open(signed, checkpoint=stop) as registry, pytest.raises(RuntimeError):
        registry.register(formats.draft(), actor="ada")

    with Registry.open(signed) as registry, registry._database.read() as connection:
        assert connection.execute(select(signatures)).all() == []


def test_a_format_that_is_added_is_signed_for_this_version(open_with: Opened, keys: Path, formats: Formats) -> None:
    registry = open_with(signer_of(keys))
    draft = formats.draft(formats={"torch": formats.torch}, evidence=())
    registry.register(draft, actor="ada")

    version = registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="ada")

    assert registry.open_format(version, "onnx").is_dir()
    assert [row.subject for row in registry.signatures.stored(version)][-1] == "onnx"


def test_the_stock_tool_verifies_a_format_and_the_record(
    open_with: Opened, keys: Path, formats: Formats, tmp_path: Path
) -> None:
    registry = open_with(signer_of(keys))
    version = registry.register(formats.draft(), actor="ada")
    record = tmp_path / "record"
    record.mkdir()
    (record / RECORD_FILE).write_bytes(record_of(version))
    folders = {WHOLE_VERSION: record, **{name: registry.open_format(version, name) for name in version.formats}}

    for row in registry.signatures.stored(version):
        bundle = tmp_path / f"{row.subject}.sig"
        bundle.write_text(row.bundle)
        stock_verifier(keys / "ours.pub.pem").verify(folders[row.subject], bundle)

    result = stock_verify(folders["onnx"], tmp_path / "onnx.sig", keys / "ours.pub.pem")
    assert result.returncode == 0, result.stdout + result.stderr
    (record / RECORD_FILE).write_bytes(record_of(version) + b" ")
    with pytest.raises(ValueError, match="Hash mismatch"):
        stock_verifier(keys / "ours.pub.pem").verify(record, tmp_path / "version.sig")


def stock_verifier(key: Path) -> Any:
    from model_signing import verifying

    return verifying.Config().use_elliptic_key_verifier(public_key=key)


def stock_verify(folder: Path, bundle: Path, key: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(bundle), "--public_key", str(key)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_version_signed_by_nobody_who_is_trusted_is_refused_with_the_keys_identity(
    open_with: Opened, keys: Path, formats: Formats
) -> None:
    theirs = open_with(signer_of(keys, "theirs"))
    version = theirs.register(formats.draft(), actor="eve")
    signed_by = theirs.signatures.stored(version)[0].identity

    ours = open_with(trusting(keys, "ours"))

    for refused in (lambda: ours.open_format(version, "onnx"), lambda: ours.verify("digits", 1)):
        with pytest.raises(IntegrityError, match="signed by nobody who is trusted") as caught:
            refused()
        assert signed_by in str(caught.value)
        assert "key `theirs` (sha256:" in str(caught.value)
        assert "key `ours` (sha256:" in str(caught.value)
    with pytest.raises(GateRefusedError, match="signed by nobody who is trusted"):
        ours.promote("digits", 1, reason="try", actor="eve")
    assert ours.resolve("digits").aliases == ()


def test_a_version_without_a_signature_is_refused_only_where_one_is_required(
    open_with: Opened, keys: Path, formats: Formats
) -> None:
    plain = open_with(None)
    version = plain.register(formats.draft(), actor="ada")

    assert open_with(trusting(keys, "ours")).open_format(version, "onnx").is_dir()
    strict = open_with(trusting(keys, "ours", required=True))
    with pytest.raises(IntegrityError, match=r"the record of `digits/1` is not signed.*key `ours`"):
        strict.load("digits/1")
    with pytest.raises(IntegrityError, match="not signed"):
        strict.input_example(version)
    with pytest.raises(GateRefusedError, match="not signed"):
        strict.promote("digits", 1, reason="try", actor="ada")


def test_signing_an_existing_version_is_idempotent_and_makes_it_acceptable(
    open_with: Opened, keys: Path, formats: Formats
) -> None:
    version = open_with(None).register(formats.draft(), actor="ada")
    registry = open_with(signer_of(keys, required=True))

    made = registry.signatures.sign(version, actor="ada")

    assert [row.subject for row in made] == [WHOLE_VERSION, "onnx", "torch"]
    assert registry.signatures.sign(version, actor="ada") == []
    assert registry.open_format(version, "onnx").is_dir()
    with registry._database.read() as connection:
        kinds = [row.kind for row in connection.execute(select(outbox).order_by(outbox.c.id))]
    assert kinds.count("version.signed") == 1


def test_a_second_key_signs_beside_the_first_and_either_counts(open_with: Opened, keys: Path, formats: Formats) -> None:
    version = open_with(signer_of(keys, "theirs")).register(formats.draft(), actor="ada")
    open_with(signer_of(keys, "ours", trusted_keys=[keys / "theirs.pub.pem"])).signatures.sign(version, actor="ada")

    for names in (("ours",), ("theirs",), ("ours", "theirs")):
        assert open_with(trusting(keys, *names, required=True)).open_format(version, "onnx").is_dir()


def test_a_changed_signature_is_refused_also_beside_a_good_one(open_with: Opened, keys: Path, formats: Formats) -> None:
    registry = open_with(signer_of(keys))
    version = registry.register(formats.draft(), actor="ada")
    good = next(row for row in registry.signatures.stored(version) if row.subject == "onnx")
    bundle = json.loads(good.bundle)
    raw = bytearray(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    add_rows(registry, version, [copied(good, bundle=json.dumps(bundle))])

    with pytest.raises(IntegrityError, match=r"does not verify with key `ours` \(sha256:[0-9a-f]{64}\)") as caught:
        open_with(trusting(keys, "ours")).open_format(version, "onnx")
    assert caught.value.facts["file"] == "onnx"
    assert open_with(trusting(keys, "ours")).open_format(version, "torch").is_dir()


def copied(row: StoredSignature, **changes: str) -> StoredSignature:
    values = {name: getattr(row, name) for name in ("subject", "digest", "identity", "bundle", "created_at")}
    return StoredSignature(**{**values, **changes})


def test_a_signature_cannot_be_moved_to_another_version_or_another_format(
    open_with: Opened, keys: Path, formats: Formats
) -> None:
    registry = open_with(signer_of(keys))
    first = registry.register(formats.draft(), actor="ada")
    plain = open_with(None)
    second = plain.register(formats.draft(), actor="eve")  # the same bytes in another version
    rows = registry.signatures.stored(first)
    by_subject = {row.subject: row for row in rows}

    add_rows(plain, second, rows)
    with pytest.raises(IntegrityError, match="does not verify with key `ours`"):
        open_with(trusting(keys, "ours")).open_format(second, "onnx")

    add_rows(plain, first, [copied(by_subject["torch"], subject="onnx")])
    with pytest.raises(IntegrityError, match="does not verify with key `ours`"):
        open_with(trusting(keys, "ours")).open_format(first, "onnx")


@pytest.mark.parametrize(
    "bundle",
    ["", "{}", "[]", "null", '"text"', "{" * 100_000, '{"verificationMaterial": {"publicKey": 3}}', "\0\ud800"],
    ids=range(8),
)
def test_a_bundle_that_is_none_counts_as_signed_by_nobody(
    open_with: Opened, keys: Path, formats: Formats, bundle: str
) -> None:
    plain = open_with(None)
    version = plain.register(formats.draft(), actor="ada")
    row = plain.signatures.stored(version)
    assert row == []
    ours = open_with(trusting(keys, "ours"))
    broken = StoredSignature(
        subject="onnx", digest=version.digest, identity="key `x`", bundle=bundle, created_at=version.created_at
    )
    with pytest.raises(IntegrityError, match="signed by nobody who is trusted"):
        ours.signatures._check("digits/1", _statement(version, "onnx"), [broken])


def _statement(version: ModelVersion, subject: str):  # noqa: ANN202  # the type is the module's own
    from noa_registry.signing import statements_of

    return next(each for each in statements_of(version) if each.subject == subject)


def test_a_bundle_with_a_trusted_hint_and_nothing_else_does_not_verify(
    open_with: Opened, keys: Path, formats: Formats
) -> None:
    registry = open_with(signer_of(keys))
    version = registry.register(formats.draft(), actor="ada")
    good = next(row for row in registry.signatures.stored(version) if row.subject == "onnx")
    bundle = json.loads(good.bundle)
    for remove in ("dsseEnvelope", "mediaType"):
        broken = json.dumps({key: value for key, value in bundle.items() if key != remove})
        with pytest.raises(IntegrityError, match="does not verify with key `ours`"):
            open_with(trusting(keys, "ours")).signatures._check(
                "digits/1", _statement(version, "onnx"), [copied(good, bundle=broken)]
            )


def test_what_verified_once_is_remembered_by_statement_bundle_and_key_only(
    open_with: Opened, keys: Path, formats: Formats, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noa_registry import model_signing_adapter

    registry = open_with(signer_of(keys))
    version = registry.register(formats.draft(), actor="ada")
    calls: list[str] = []
    original = model_signing_adapter._run_verifier

    def counted(config: object, bundle: str, statement: object) -> None:
        calls.append(bundle)
        original(config, bundle, statement)  # pyright: ignore[reportArgumentType]  # as it came

    monkeypatch.setattr(model_signing_adapter, "_run_verifier", counted)
    for _ in range(3):
        registry.open_format(version, "onnx")
    assert len(calls) == 2  # the record and the format, once
    open_with(trusting(keys, "ours")).open_format(version, "onnx")
    assert len(calls) == 4


def test_a_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public, fingerprint = new_key(tmp_path / "keys", "release")

    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert "BEGIN PRIVATE KEY" in private.read_text()
    assert "BEGIN PUBLIC KEY" in public.read_text()
    assert len(fingerprint) == 64
    before = private.read_bytes()
    with pytest.raises(InvalidInputError, match="never overwritten"):
        new_key(tmp_path / "keys", "release")
    assert private.read_bytes() == before


def test_a_key_that_others_may_read_is_refused(keys: Path) -> None:
    (keys / "ours.pem").chmod(0o640)
    with pytest.raises(InvalidInputError, match=r"others may read.*mode 0640.*chmod 600"):
        load_signer(signer_of(keys))


def test_a_key_from_the_environment_signs_and_appears_nowhere(open_with: Opened, keys: Path, formats: Formats) -> None:
    pem = (keys / "ours.pem").read_text()
    settings = SigningSettings(private_key_pem=SecretStr(pem), required=True)
    registry = open_with(settings)
    version = registry.register(formats.draft(), actor="ada")

    assert registry.open_format(version, "onnx").is_dir()
    assert pem not in repr(settings)
    assert open_with(trusting(keys, "ours", required=True)).open_format(version, "onnx").is_dir()


def test_a_key_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = tmp_path / "approver.pem"
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    with pytest.raises(InvalidInputError, match=r"`approver` is of another kind.*Ed25519"):
        load_signer(SigningSettings(private_key=path))
    path.write_text("no key")
    with pytest.raises(InvalidInputError, match="cannot be used"):
        load_signer(SigningSettings(private_key=path))


def test_settings_that_could_never_open_anything_are_refused() -> None:
    with pytest.raises(ValidationError, match="no key is trusted"):
        SigningSettings(required=True)
    with pytest.raises(ValidationError, match="belong together"):
        SigningSettings(sigstore_identity="ada@example.org")
    with pytest.raises(ValidationError, match="both set"):
        SigningSettings(private_key=Path("a"), private_key_pem=SecretStr("b"))


def test_sigstore_without_a_network_refuses_by_name_with_the_reason(
    open_with: Opened, formats: Formats, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")  # the tests' own servers
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("GITHUB_", "ACTIONS_", "GOOGLE_", "BUILDKITE"))]:
        monkeypatch.delenv(name)

    with pytest.raises(InvalidInputError, match="sigstore signing has no identity"):
        open_with(SigningSettings(method="sigstore")).register(formats.draft(), actor="ada")
    token = SigningSettings(method="sigstore", sigstore_token=SecretStr("not.a.token"))
    with pytest.raises(ServiceError, match=r"sigstore cannot sign: .*tuf-repo-cdn"):
        open_with(token).register(formats.draft(), actor="ada")
    assert open_with(None).models() == []


def test_signature_rows_cannot_be_changed_or_deleted(open_with: Opened, keys: Path, formats: Formats) -> None:
    registry = open_with(signer_of(keys))
    registry.register(formats.draft(), actor="ada")
    for statement in (signatures.delete(), signatures.update().values(identity="nobody")):
        with pytest.raises(Exception, match="never changed or deleted"), registry._database.write() as connection:
            connection.execute(statement)
    with registry._database.read() as connection:
        assert len(connection.execute(select(signatures)).all()) == 3
