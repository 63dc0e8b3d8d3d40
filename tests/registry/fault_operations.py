"""What can be interrupted: each operation of the registry, on the same registry that has something of everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.random
from fault_states import ADDED_FILE

from conftest import Formats, write_formats
from noa.errors import ConflictError, NoaError, NotFoundError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import Attachment, Evidence, Registry

GATES = {"digits": GateSettings(approvals=1, aliases=("release",))}
NOW = timedelta(0)
CHAMPION, CANDIDATE, PLAIN, TRASHED, GOING = 2, 3, 4, 5, 6
STRANGER = "f" * 32
SHARED_BYTES = 6000


@dataclass(frozen=True)
class Place:
    """Where everything is: `state` is the project's folder, which is made anew for each point; `inputs` stay."""

    state: Path
    inputs: Path
    settings: RegistrySettings

    def formats(self, seed: int) -> Formats:
        """Formats number `seed`, one file of which is large enough to be shared between versions."""
        folder = self.inputs / f"formats-{seed}"
        if not folder.exists():
            write_formats(folder, seed)
            (folder / "torch" / "more.bin").write_bytes(np.random.default_rng(seed).bytes(SHARED_BYTES))
        return load_formats(folder, seed)


@dataclass(frozen=True)
class Operation:
    """Something that a process does and may not survive.

    `prepare` changes the common registry first. `run` is what is interrupted; with `opens` also opening the registry
    is. `repeated` is what it may raise if it is done once more after it was complete. `check` asserts that it is done.
    `damaged`: what it starts from is not whole. `reads`: it changes no file of a version.
    `garbage`: it starts with what only a collection removes.
    """

    name: str
    run: Callable[[Registry, Place], object]
    check: Callable[[Registry, Place], None]
    prepare: Callable[[Place], None] = lambda _place: None
    repeated: tuple[type[NoaError], ...] = ()
    opens: bool = False
    damaged: bool = False
    reads: bool = False
    garbage: bool = False


def load_formats(folder: Path, seed: int) -> Formats:
    from noa.signatures import Signature

    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    return Formats(folder=folder, signature=Signature.load(folder / "torch"), weights=weights)


def build_registry(place: Place) -> None:
    """Make the registry that all operations start from: versions that are live, new, plain, in the trash, and due."""
    with Registry.open(place.settings, gates=GATES) as registry:
        for seed in (1, 2, 3):
            formats = place.formats(seed)
            registry.register(formats.draft(tags={"team": "vision"}), actor="ada")
            registry.attach("digits", seed, formats.metrics(accuracy=0.9))
        for number in (1, CHAMPION):
            registry.promote("digits", number, reason=f"release {number}", actor="ada")
        plain = place.formats(4)
        registry.register(plain.draft(formats={"torch": plain.torch}, evidence=()), actor="ada")
        for number in (TRASHED, GOING):
            registry.register(place.formats(number).draft(), actor="ada")
        registry.attach("digits", GOING, photo_of(registry, GOING, b"of nobody else" * 50))
        registry.retention.delete("digits", TRASHED, reason="old", actor="ada")
        registry.retention.delete("digits", GOING, reason="wrong", actor="ada", grace=NOW)
    (place.state / "exports").mkdir(exist_ok=True)


def photo_of(registry: Registry, number: int, content: bytes) -> Evidence:
    photo = Attachment(media_type="application/octet-stream", content=content)
    version = registry.resolve(f"digits/{number}")
    values = {"attachment": photo.digest}
    return Evidence(kind="photo", subject="version", digest=version.digest, values=values, attachments=(photo,))


def _register(registry: Registry, place: Place) -> object:
    formats = place.formats(11)
    return registry.register(
        formats.draft(evidence=(formats.equivalence(), formats.metrics(accuracy=0.8))), actor="eve"
    )


def _register_again(registry: Registry, place: Place) -> object:
    return registry.register(place.formats(1).draft(), actor="eve")


def _is_registered(seed: int) -> Callable[[Registry, Place], None]:
    def check(registry: Registry, place: Place) -> None:
        newest = registry.resolve("digits")
        assert newest.number > GOING
        assert newest.formats["torch"].digest == place.formats(seed).digest("torch")

    return check


def _shares(registry: Registry, place: Place) -> None:
    _is_registered(1)(registry, place)
    if place.settings.artifact_url:
        return
    inodes = {
        (registry.resolve(f"digits/{number}").folder / "formats/torch/more.bin").stat().st_ino
        for number in (1, registry.resolve("digits").number)
    }
    assert len(inodes) == 1, "equal bytes are not shared"


def _add_format(registry: Registry, place: Place) -> object:
    formats = place.formats(PLAIN)
    facts = [formats.equivalence()]
    return registry.add_format("digits", PLAIN, "onnx", formats.onnx, evidence=facts, actor="eve")


def _has_format(registry: Registry, _place: Place) -> None:
    assert set(registry.resolve(f"digits/{PLAIN}").formats) == {"torch", "onnx"}


def _attach(registry: Registry, place: Place) -> object:
    facts = [place.formats(CANDIDATE).metrics(accuracy=0.99), photo_of(registry, CANDIDATE, b"a photo" * 100)]
    return registry.attach("digits", CANDIDATE, facts)


def _is_attached(registry: Registry, _place: Place) -> None:
    (photo, *_) = [fact for fact in registry.evidence("digits", CANDIDATE) if fact.kind == "photo"]
    assert registry.attachment(str(photo.values["attachment"])).content == b"a photo" * 100


def _promote(registry: Registry, _place: Place) -> object:
    return registry.promote("digits", CANDIDATE, reason="better", actor="eve", expect=CHAMPION)


def _holds(alias: str, number: int) -> Callable[[Registry, Place], None]:
    def check(registry: Registry, _place: Place) -> None:
        assert registry.resolve(f"digits@{alias}").number == number

    return check


def _rollback(registry: Registry, _place: Place) -> object:
    return registry.rollback("digits", reason="worse", actor="eve", expect=CHAMPION)


def _approve_and_promote(registry: Registry, _place: Place) -> object:
    registry.approvals.grant("digits", CANDIDATE, alias="release", principal="bob", reason="looked at it")
    return registry.promote("digits", CANDIDATE, alias="release", reason="out", actor="eve", expect=None)


def _was_approved(registry: Registry, place: Place) -> None:
    _holds("release", CANDIDATE)(registry, place)
    used = [approval for approval in registry.approvals.list("digits") if approval.used_by is not None]
    assert len(used) == 1


def _delete(registry: Registry, _place: Place) -> object:
    return registry.retention.delete("digits", CANDIDATE, reason="worse", actor="eve")


def _is_deleted(registry: Registry, _place: Place) -> None:
    assert CANDIDATE not in registry.numbers("digits")
    assert CANDIDATE in [one.number for one in registry.retention.trashed("digits")]


def _restore(registry: Registry, _place: Place) -> object:
    return registry.retention.restore("digits", TRASHED, actor="eve")


def _is_restored(registry: Registry, _place: Place) -> None:
    registry.verify("digits", TRASHED)


def _leave_garbage(place: Place) -> None:
    """A unit that no row names, a folder that a dead writer left without its lock, and a file beside them."""
    if place.settings.artifact_url:
        return
    for folder in (
        place.settings.artifact_dir / "digits" / STRANGER,
        place.settings.artifact_dir / "_staging" / STRANGER,
    ):
        folder.mkdir(parents=True)
        (folder / "MLmodel").write_text("of nobody")


def _collect(registry: Registry, _place: Place) -> object:
    for _ in range(2):  # attachments are needed as long as a version that names them has its files
        registry.retention.apply(registry.retention.plan_gc(orphan_age=NOW, cache_age=NOW, unknown=True), actor="ada")
    return None


def _is_collected(registry: Registry, place: Place) -> None:
    (purged,) = [one for one in registry.retention.trashed(with_purged=True) if one.number == GOING]
    assert purged.state == "purged"
    left = registry.retention.plan_gc(orphan_age=NOW, unknown=True).items
    assert left == (), left
    if not place.settings.artifact_url:
        assert not (place.settings.artifact_dir / "digits" / STRANGER).exists()


def _write_archive(place: Place) -> None:
    """Export `digits/1` of another registry, whose model has no version here."""
    elsewhere = place.inputs / "elsewhere"
    if not elsewhere.exists():
        elsewhere.mkdir()
        settings = RegistrySettings(
            database_url=f"sqlite:///{elsewhere / 'noa.db'}", artifact_dir=elsewhere / "artifacts"
        )
        with Registry.open(settings) as registry:
            formats = place.formats(21)
            registry.register(formats.draft(name="moved", evidence=(formats.equivalence(),)), actor="zoe")
            version = registry.resolve("moved/1")
            photo = Attachment(media_type="text/plain", content=b"travels" * 10)
            values = {"attachment": photo.digest}
            fact = Evidence(kind="photo", subject="version", digest=version.digest, values=values, attachments=(photo,))
            registry.attach("moved", 1, fact)
            registry.promote("moved", 1, reason="there", actor="zoe")
            registry.archives.write("moved", 1, place.inputs / "moved-1.noa")


def _import_archive(registry: Registry, place: Place) -> object:
    return registry.archives.read(place.inputs / "moved-1.noa", actor="eve")


def _is_imported(registry: Registry, _place: Place) -> None:
    assert registry.numbers("moved") == [1]
    registry.verify("moved", 1)
    assert {"photo", "origin", "history"} <= {fact.kind for fact in registry.evidence("moved", 1)}


def _import_onnx(registry: Registry, place: Place) -> object:
    from noa_conversion.imports import import_model

    path = place.formats(31).onnx / "model.onnx"
    return import_model(registry, path, name="outside", actor="eve")


def _onnx_is_imported(registry: Registry, _place: Place) -> None:
    registry.verify("outside", registry.resolve("outside").number)
    assert [fact.kind for fact in registry.evidence("outside", 1)] == ["scan"]


def _export(registry: Registry, place: Place) -> object:
    return registry.archives.write("digits", 1, place.state / "exports" / "digits-1.noa")


def _is_exported(registry: Registry, place: Place) -> None:
    _, archived = registry.archives.inspect(place.state / "exports" / "digits-1.noa")
    assert archived.digest == registry.resolve("digits/1").digest


def _damage(place: Place) -> None:
    """Move MLflow's alias, flip a byte of a file that exists elsewhere, lose another, and add one."""
    from sql_access import execute_on

    with Registry.open(place.settings) as registry:
        copy = registry.register(place.formats(CANDIDATE).draft(), actor="ada")
        folder = registry.resolve(f"digits/{CANDIDATE}").folder
    execute_on(place.settings, "UPDATE registered_model_aliases SET version = 1", "DELETE FROM model_version_tags")
    weights = folder / "formats" / "torch" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    os.chmod(weights, 0o644)  # noqa: PTH101  # the library must not be in the way of its own test
    weights.write_bytes(bytes(data))
    (folder / "formats" / "onnx" / "model.onnx").unlink()
    (folder / "formats" / "torch" / ADDED_FILE).write_text("extra")
    assert copy.number == GOING + 1


def _repair(registry: Registry, _place: Place) -> object:
    return registry.repair_mirror(), registry.repair_files("digits", CANDIDATE)


def _is_repaired(registry: Registry, place: Place) -> None:
    assert registry.mirror_discrepancies() == []
    registry.verify("digits", CANDIDATE)
    (aside,) = (place.settings.artifact_dir / "_set_aside").rglob(ADDED_FILE)
    assert aside.read_text() == "extra"


def _die_while_registering(place: Place) -> None:
    """Leave what a writer leaves that was killed after it had put its files in place."""
    child = os.fork()
    if child == 0:

        def die(step: str) -> None:
            if step == "published":
                os._exit(0)

        with Registry.open(place.settings, checkpoint=die) as registry:
            _register(registry, place)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0


def _fetch(registry: Registry, _place: Place) -> object:
    version = registry.resolve("digits/1")
    return [registry.open_format(version, name) for name in version.formats], registry.open_wrapper(version)


def _is_fetched(registry: Registry, place: Place) -> None:
    more = registry.open_format(registry.resolve("digits/1"), "torch") / "more.bin"
    assert more.read_bytes() == (place.formats(1).torch / "more.bin").read_bytes()


def _open(_registry: Registry, _place: Place) -> None:
    return


def _nothing(_registry: Registry, _place: Place) -> None:
    return


OPERATIONS = (
    Operation("register", _register, _is_registered(11)),
    Operation("register equal bytes", _register_again, _shares),
    Operation("add_format", _add_format, _has_format, repeated=(ConflictError,)),
    Operation("attach", _attach, _is_attached),
    Operation("promote", _promote, _holds("champion", CANDIDATE), repeated=(ConflictError,), reads=True),
    Operation("rollback", _rollback, _holds("champion", 1), repeated=(ConflictError,)),
    Operation("approve and promote", _approve_and_promote, _was_approved, repeated=(ConflictError,)),
    Operation("delete", _delete, _is_deleted, repeated=(NotFoundError,)),
    Operation("restore", _restore, _is_restored, repeated=(ConflictError,)),
    Operation("gc", _collect, _is_collected, prepare=_leave_garbage, garbage=True),
    Operation("import an archive", _import_archive, _is_imported, prepare=_write_archive, repeated=(ConflictError,)),
    Operation("import an ONNX file", _import_onnx, _onnx_is_imported),
    Operation("export", _export, _is_exported, repeated=(ConflictError,)),
    Operation("repair", _repair, _is_repaired, prepare=_damage, damaged=True),
    Operation("fetch", _fetch, _is_fetched, reads=True),
    Operation("open after a crash", _open, _nothing, prepare=_die_while_registering, opens=True),
)
