"""Approvals: whose word counts, for what, how often, until when; signed and not."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc

from noa.digests import canonical_json, sha256_bytes
from noa.errors import ConflictError, GateRefusedError, InvalidInputError, NotFoundError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import KeyPair, ModelVersion, Registry, new_key_pair

GATE = GateSettings(approvals=1, aliases=("champion",))
RACE = Path(__file__).with_name("race_child.py")

# Nothing here is about files: a local folder on both databases.
pytestmark = pytest.mark.usefixtures("artifact_dir")


@pytest.fixture
def guarded(settings: RegistrySettings, formats: Any) -> Iterator[Registry]:
    """`digits/1` and `digits/2`; `champion` needs one approval."""
    with Registry.open(settings, gates={"digits": GATE}) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        yield registry


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, KeyPair]:
    return {name: new_key_pair(name, tmp_path / "keys") for name in ("ada", "bob", "eve")}


@pytest.fixture
def signed(settings: RegistrySettings, formats: Any, keys: dict[str, KeyPair]) -> Iterator[Registry]:
    """As `guarded`, with the principals ada (key in the settings) and bob (key in a file)."""
    principals = {"ada": keys["ada"].public, "bob": str(keys["bob"].public_file)}
    with Registry.open(settings.model_copy(update={"principals": principals}), gates={"digits": GATE}) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="carl")
        yield registry


def refusal(registry: Registry, number: int = 1, *, actor: str = "carl", alias: str = "champion") -> str:
    with pytest.raises(GateRefusedError) as caught:
        registry.promote("digits", number, alias=alias, reason="r", actor=actor)
    report: Any = caught.value.facts["report"]
    assert [verdict.rule for verdict in report.refusals] == ["approvals"]
    return str(caught.value)


def test_a_protected_alias_moves_with_a_second_persons_approval_only(guarded: Registry) -> None:
    assert "noa models approve digits/1 --alias champion" in refusal(guarded)
    assert guarded.promote("digits", 1, alias="staging", reason="r", actor="carl").to_number == 1
    granted = guarded.approvals.grant("digits", 1, principal="ada", reason="looked at the errors")
    entry = guarded.promote("digits", 1, reason="r", actor="carl")
    used = guarded.approvals.list("digits")[0]
    assert (used.id, used.used_by, used.state(datetime.now(UTC))) == (granted.id, entry.sequence, "used")
    (named,) = entry.verdict["approvals"]  # type: ignore[misc]
    assert (named["id"], named["principal"], named["statement"]) == (granted.id, "ada", granted.statement)
    assert guarded.ledger.verify().problems == ()


def test_an_approval_is_used_once(guarded: Registry) -> None:
    for number in (1, 2):
        guarded.approvals.grant("digits", number, principal="ada", reason="r")
        guarded.promote("digits", number, reason="r", actor="carl")
    guarded.rollback("digits", reason="worse", actor="carl")  # the way back needs nobody
    assert "approval 2 by ada was used by ledger row 2" in refusal(guarded, 2)


APPROVAL = "name, number, alias, digest, principal, reason, signature, created_at, expires_at"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE noa_approvals SET used_by = NULL",
        "UPDATE noa_approvals SET created_at = '2020-01-01T00:00:00+00:00'",
        "UPDATE noa_approvals SET expires_at = '2999-01-01T00:00:00+00:00'",
        "UPDATE noa_approvals SET id = 99",
        "DELETE FROM noa_approvals",
        f"INSERT INTO noa_approvals ({APPROVAL}) SELECT {APPROVAL} FROM noa_approvals",
    ],
)
def test_the_database_keeps_a_used_approval_used(guarded: Registry, execute: Any, statement: str) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    guarded.promote("digits", 1, reason="r", actor="carl")
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="used once"):
        execute(statement)


def test_the_database_keeps_a_revoked_approval_revoked(guarded: Registry, execute: Any) -> None:
    granted = guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    guarded.approvals.revoke(granted.id, actor="ada", reason="a doubt")
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="used once"):
        execute("UPDATE noa_approvals SET revoked_at = NULL")


def test_a_step_that_is_run_again_needs_no_second_approval(guarded: Registry) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    first = guarded.promote("digits", 1, reason="r", actor="carl")
    assert guarded.promote("digits", 1, reason="r", actor="carl") == first
    (said,) = [verdict for verdict in guarded.check("digits", 1).verdicts if verdict.rule == "approvals"]
    assert (said.passed, said.received) == (True, "it holds `champion` already")


def test_nobody_approves_what_they_promote(guarded: Registry) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    assert "by the actor: somebody else must approve" in refusal(guarded, actor="ada")
    assert not guarded.check("digits", 1, actor="ada").passed
    assert guarded.check("digits", 1, actor="carl").passed
    assert guarded.promote("digits", 1, reason="r", actor="carl").to_number == 1


@pytest.mark.parametrize("actor", ["flow brisk-otter by ada", "flow brisk-otter by ada@build-7", "ada@build-7"])
def test_nobody_approves_what_their_own_pipeline_promotes(guarded: Registry, actor: str) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    assert "by the actor: somebody else must approve" in refusal(guarded, actor=actor)
    assert guarded.promote("digits", 1, reason="r", actor="flow brisk-otter by carl").to_number == 1


def test_an_approval_is_for_one_version_and_one_alias(guarded: Registry) -> None:
    guarded.approvals.grant("digits", 2, principal="ada", reason="r")
    guarded.approvals.grant("digits", 1, alias="staging", principal="ada", reason="r")
    refusal(guarded, 1)


def test_an_approval_is_for_one_digest(guarded: Registry, tamper: Any) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    tamper(f"UPDATE noa_approvals SET digest = 'sha256:{'0' * 64}'")
    assert "is for other bytes" in refusal(guarded)


def test_an_approval_expires(guarded: Registry) -> None:
    granted = guarded.approvals.grant("digits", 1, principal="ada", reason="r", expires_in=timedelta(microseconds=1))
    assert granted.state(datetime.now(UTC)) == "expired"
    assert "approval 1 by ada expired at" in refusal(guarded)


def states(registry: Registry, number: int = 1) -> list[str]:
    return [one.state(datetime.now(UTC)) for one in registry.approvals.list("digits", number)]


def test_an_approval_that_can_never_be_used_is_void_and_holds_nothing(guarded: Registry, tamper: Any) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    assert states(guarded) == ["open"]
    with pytest.raises(ConflictError, match="take it back with `noa models revoke 1`"):
        guarded.retention.delete("digits", 1, reason="r", actor="carl")
    tamper(f"UPDATE noa_approvals SET digest = 'sha256:{'0' * 64}'")
    assert states(guarded) == ["void"]
    assert str(guarded.approvals.list("digits")[0].void).startswith("is for other bytes, sha256:000")
    assert guarded.retention.holds("digits", 1) == []
    guarded.retention.delete("digits", 1, reason="r", actor="carl")


def test_an_approval_of_a_deleted_version_is_void(guarded: Registry, tamper: Any) -> None:
    expires = guarded.approvals.grant("digits", 1, principal="ada", reason="r").expires_at
    tamper("UPDATE noa_approvals SET expires_at = '2020-01-01T00:00:00.000000+00:00'")
    assert states(guarded) == ["expired"]
    guarded.retention.delete("digits", 1, reason="r", actor="carl", grace=timedelta())
    tamper(f"UPDATE noa_approvals SET expires_at = '{expires.isoformat(timespec='microseconds')}'")
    assert [one.void for one in guarded.approvals.list("digits")] == ["is for a version that is in the trash"]
    guarded.retention.apply(guarded.retention.plan_gc(), actor="ada")
    assert [one.void for one in guarded.approvals.list("digits")] == ["is for a version that was purged"]


def test_an_approval_that_the_ledger_says_was_used_is_used_once(guarded: Registry, tamper: Any) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    guarded.promote("digits", 1, reason="r", actor="carl")
    guarded.approvals.grant("digits", 2, principal="ada", reason="r")
    guarded.promote("digits", 2, reason="r", actor="carl")
    tamper("UPDATE noa_approvals SET used_by = NULL WHERE number = 1")
    assert states(guarded) == ["void"]
    assert "was used by ledger row 1; its own row was changed since" in refusal(guarded)


def test_an_approval_whose_signature_counts_for_nothing_is_void(
    signed: Registry, keys: dict[str, KeyPair], tamper: Any
) -> None:
    signed.approvals.grant("digits", 1, key=keys["ada"].private_file, reason="r")
    tamper("UPDATE noa_approvals SET principal = 'bob'")
    assert states(signed) == ["void"]
    assert signed.approvals.list("digits")[0].void == "has a signature that does not verify"
    signed.retention.delete("digits", 1, reason="r", actor="carl")


def test_an_approval_can_be_revoked_until_it_is_used(guarded: Registry) -> None:
    granted = guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    revoked = guarded.approvals.revoke(granted.id, reason="saw a problem", actor="ada")
    assert revoked.state(datetime.now(UTC)) == "revoked"
    assert "was revoked" in refusal(guarded)
    with pytest.raises(ConflictError, match="can no longer be revoked"):
        guarded.approvals.revoke(granted.id, reason="again", actor="ada")
    second = guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    guarded.promote("digits", 1, reason="r", actor="carl")
    with pytest.raises(ConflictError, match="used by ledger row 1"):
        guarded.approvals.revoke(second.id, reason="too late", actor="ada")
    with pytest.raises(NotFoundError, match="no approval 77"):
        guarded.approvals.revoke(77, reason="r", actor="ada")
    kinds = [event.kind for event in guarded.events.read("test", name="digits") if event.kind.startswith("approval")]
    assert kinds == ["approval.granted", "approval.revoked", "approval.granted"]


def test_two_approvals_are_two_people(settings: RegistrySettings, formats: Any) -> None:
    with Registry.open(settings, gates={"digits": GateSettings(approvals=2)}) as registry:
        registry.register(formats.draft(), actor="carl")
        for _ in range(2):
            registry.approvals.grant("digits", 1, principal="ada", reason="r")
        refusal(registry)
        registry.approvals.grant("digits", 1, principal="bob", reason="r")
        entry = registry.promote("digits", 1, reason="r", actor="carl")
        assert [one["principal"] for one in entry.verdict["approvals"]] == ["ada", "bob"]  # type: ignore[union-attr]
        assert [one.used_by for one in registry.approvals.list("digits")] == [1, None, 1]


def test_of_promotions_that_race_for_one_approval_one_wins(guarded: Registry, settings: RegistrySettings) -> None:
    guarded.approvals.grant("digits", 1, principal="ada", reason="r")
    request = {
        "settings": settings.model_dump(mode="json"),
        "numbers": [1] * 8 + [2] * 4,
        "expect": None,
        "gates": {"digits": GATE.model_dump(mode="json")},
    }
    command = [sys.executable, str(RACE), json.dumps(request)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 12
    assert [answer["to"] for answer in answers if "to" in answer] == [1]
    assert {answer["error"] for answer in answers if "to" not in answer} <= {"ConflictError", "GateRefusedError"}
    assert [(one.used_by) for one in guarded.approvals.list("digits")] == [1]
    assert len(guarded.history("digits")) == 1
    assert guarded.ledger.verify().problems == ()


def test_arguments_of_an_approval_are_checked(guarded: Registry) -> None:
    for change in (
        {"reason": " "},
        {"principal": ""},
        {"alias": "Champion"},
        {"expires_in": timedelta()},
        {"expires_in": timedelta(days=400)},
    ):
        arguments: dict[str, Any] = {"principal": "ada", "reason": "r", **change}
        with pytest.raises(InvalidInputError):
            guarded.approvals.grant("digits", 1, **arguments)
    with pytest.raises(NotFoundError, match="no version 9"):
        guarded.approvals.grant("digits", 9, principal="ada", reason="r")
    with pytest.raises(NotFoundError, match="no model `none`"):
        guarded.approvals.list("none")
    assert list(guarded.approvals.list("digits")) == []


def test_a_key_where_nobody_could_verify_it_is_refused(guarded: Registry, keys: dict[str, KeyPair]) -> None:
    with pytest.raises(InvalidInputError, match="has no principals"):
        guarded.approvals.grant("digits", 1, principal="ada", reason="r", key=keys["ada"].private_file)


def test_with_principals_approvals_are_signed_and_verified(signed: Registry, keys: dict[str, KeyPair]) -> None:
    with pytest.raises(InvalidInputError, match="must be signed"):
        signed.approvals.grant("digits", 1, principal="ada", reason="r")
    with pytest.raises(InvalidInputError, match="none of the project's principals"):
        signed.approvals.grant("digits", 1, reason="r", key=keys["eve"].private_file)
    with pytest.raises(InvalidInputError, match="belongs to another principal"):
        signed.approvals.grant("digits", 1, principal="ada", reason="r", key=keys["bob"].private_file)
    granted = signed.approvals.grant("digits", 1, reason="r", key=keys["bob"].private_file)
    assert granted.principal == "bob"
    assert signed.promote("digits", 1, reason="r", actor="carl").to_number == 1
    assert signed.ledger.verify().problems == ()


def test_what_is_signed_names_version_digest_alias_principal_expiry_and_registry(
    signed: Registry, keys: dict[str, KeyPair], execute: Callable[..., list[Any]]
) -> None:
    import base64

    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    granted = signed.approvals.grant("digits", 1, reason="why", key=keys["ada"].private_file)
    ((registry_id,),) = execute("SELECT id FROM noa_identity")
    statement = canonical_json(
        {
            "type": "noa-approval-1",
            "registry": registry_id,
            "name": "digits",
            "number": 1,
            "digest": signed.resolve("digits/1").digest,
            "alias": "champion",
            "principal": "ada",
            "reason": "why",
            "created_at": granted.created_at.isoformat(timespec="microseconds"),
            "expires_at": granted.expires_at.isoformat(timespec="microseconds"),
        }
    )
    assert granted.statement == sha256_bytes(statement)
    public: Any = load_pem_public_key(keys["ada"].public_file.read_bytes())
    public.verify(base64.b64decode(str(granted.signature)), statement)  # raises if it is not that


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("signature = NULL", "is not signed"),
        ("principal = 'bob'", "a signature that does not verify"),
        ("principal = 'eve'", "by nobody in"),
        ("expires_at = '2999-01-01T00:00:00.000000+00:00'", "a signature that does not verify"),
        ("reason = 'other'", "a signature that does not verify"),
        ("signature = 'no base64!'", "a signature that does not verify"),
        ("number = 2", ""),
        ("alias = 'staging'", ""),
    ],
)
def test_a_changed_approval_is_worth_nothing(
    signed: Registry, keys: dict[str, KeyPair], tamper: Any, change: str, problem: str
) -> None:
    signed.approvals.grant("digits", 1, reason="r", key=keys["ada"].private_file)
    tamper(f"UPDATE noa_approvals SET {change}")
    assert problem in refusal(signed)
    if change == "number = 2":
        assert "is for other bytes" in refusal(signed, 2)


def test_an_approval_of_another_registry_is_worth_nothing(
    signed: Registry, keys: dict[str, KeyPair], tamper: Any
) -> None:
    signed.approvals.grant("digits", 1, reason="r", key=keys["ada"].private_file)
    tamper("UPDATE noa_identity SET id = 'another'")
    assert "a signature that does not verify" in refusal(signed)


def test_a_used_approval_that_is_used_again_behind_our_back_is_found(
    signed: Registry, keys: dict[str, KeyPair], tamper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed.approvals.grant("digits", 1, reason="r", key=keys["ada"].private_file)
    signed.promote("digits", 1, reason="r", actor="carl")
    signed.approvals.grant("digits", 2, reason="r", key=keys["ada"].private_file)
    signed.promote("digits", 2, reason="r", actor="carl")
    tamper("UPDATE noa_approvals SET used_by = NULL WHERE id = 1")
    assert [(p.sequence, p.received) for p in signed.ledger.verify().problems] == [
        (1, "it is marked as used by row None")
    ]
    monkeypatch.setattr("noa_registry.approvals.desk._used_statements", lambda verdict: [])  # an older noa did not look
    signed.promote("digits", 1, reason="again", actor="carl")
    problems = {(p.sequence, p.received) for p in signed.ledger.verify().problems}
    assert problems == {(1, "it is marked as used by row 3"), (3, "it was used by row 1 already")}
    tamper("DELETE FROM noa_approvals WHERE id = 2")
    assert (2, "it is gone") in {(p.sequence, p.received) for p in signed.ledger.verify().problems}


def test_a_signature_that_was_changed_after_use_is_found(
    signed: Registry, keys: dict[str, KeyPair], tamper: Any
) -> None:
    signed.approvals.grant("digits", 1, reason="r", key=keys["ada"].private_file)
    signed.promote("digits", 1, reason="r", actor="carl")
    tamper("UPDATE noa_approvals SET signature = 'AAAA'")
    assert [p.received for p in signed.ledger.verify().problems] == ["its signature does not verify"]


def test_a_new_key_pair_has_the_right_modes_and_is_never_overwritten(tmp_path: Path) -> None:
    pair = new_key_pair("ada@bank.example", tmp_path / "keys")
    assert stat.S_IMODE(pair.private_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(pair.public_file.stat().st_mode) == 0o644
    before = pair.private_file.read_bytes()
    with pytest.raises(ConflictError, match="a key of this name already"):
        new_key_pair("ada@bank.example", tmp_path / "keys")
    assert pair.private_file.read_bytes() == before
    for name in ("../ada", "", ".ada", "a/b"):
        with pytest.raises(InvalidInputError):
            new_key_pair(name, tmp_path / "keys")


def test_a_private_key_that_others_may_read_is_refused(signed: Registry, keys: dict[str, KeyPair]) -> None:
    keys["ada"].private_file.chmod(0o640)
    with pytest.raises(InvalidInputError, match="other users may read this private key"):
        signed.approvals.grant("digits", 1, reason="r", key=keys["ada"].private_file)


@pytest.mark.parametrize("content", [b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused_by_name(
    signed: Registry, keys: dict[str, KeyPair], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidInputError, match="another kind of key, or none"):
        signed.approvals.grant("digits", 1, reason="r", key=path)
    with pytest.raises(NotFoundError, match="cannot read the key"):
        signed.approvals.grant("digits", 1, reason="r", key=tmp_path / "none")


@pytest.mark.parametrize("value", ["ed25519:AAAA", "ed25519:!", "no/such/file.pem"])
def test_a_principal_without_a_proper_public_key_is_named(
    sqlite_settings: RegistrySettings, formats: Any, value: str
) -> None:
    settings = sqlite_settings.model_copy(update={"principals": {"ada": value}})
    with Registry.open(settings, gates={"digits": GATE}) as registry:
        registry.register(formats.draft(), actor="carl")
        with pytest.raises(InvalidInputError, match=r"registry\.principals\.ada"):
            registry.approvals.grant("digits", 1, reason="r", key=Path("none"))


def test_one_key_is_one_person(sqlite_settings: RegistrySettings, formats: Any, keys: dict[str, KeyPair]) -> None:
    same = {"ada": keys["ada"].public, "bob": keys["ada"].public}
    settings = sqlite_settings.model_copy(update={"principals": same})
    with Registry.open(settings, gates={"digits": GATE}) as registry:
        registry.register(formats.draft(), actor="carl")
        with pytest.raises(InvalidInputError, match="`ada` and `bob` have the same key"):
            registry.approvals.grant("digits", 1, reason="r", key=keys["ada"].private_file)


def test_an_approval_that_is_in_the_way_of_nobody_stays_open(
    guarded: Registry, version_of: Callable[[int], ModelVersion]
) -> None:
    guarded.approvals.grant("digits", 1, alias="staging", principal="ada", reason="r")
    guarded.promote("digits", version_of(1).number, alias="staging", reason="r", actor="carl")
    assert [one.used_by for one in guarded.approvals.list("digits")] == [None]


@pytest.fixture
def version_of(guarded: Registry) -> Callable[[int], ModelVersion]:
    return lambda number: guarded.resolve(f"digits/{number}")


TWO = GateSettings(approvals=2, aliases=("champion",))


@pytest.mark.parametrize("second", ["ada@b", "Ada", "ada ", "ADA@build-7"])
def test_two_spellings_of_one_name_are_one_approval(settings: RegistrySettings, formats: Any, second: str) -> None:
    with Registry.open(settings, gates={"digits": TWO}) as registry:
        registry.register(formats.draft(), actor="carl")
        for principal in ("ada", second):
            registry.approvals.grant("digits", 1, principal=principal, reason="r")
        told = refusal(registry)
        assert "expected 2 valid approvals" in told
        assert "received 1: " in told
        assert ("is by the same person as that by" in told) is (second != "ada ")  # spaces are not even kept
        registry.approvals.grant("digits", 1, principal="bob", reason="r")
        used: Any = registry.promote("digits", 1, reason="r", actor="carl").verdict["approvals"]
        assert len({one["principal"].strip().casefold().partition("@")[0] for one in used}) == 2


def test_two_keys_of_one_person_are_one_approval(
    settings: RegistrySettings, formats: Any, keys: dict[str, KeyPair]
) -> None:
    principals = {"ada": keys["ada"].public, "Ada@laptop": keys["bob"].public, "eve": keys["eve"].public}
    own = settings.model_copy(update={"principals": principals})
    with Registry.open(own, gates={"digits": TWO}) as registry:
        registry.register(formats.draft(), actor="carl")
        for name in ("ada", "bob"):
            registry.approvals.grant("digits", 1, reason="r", key=keys[name].private_file)
        assert "received 1: Ada@laptop" in refusal(registry)
        registry.approvals.grant("digits", 1, reason="r", key=keys["eve"].private_file)
        assert registry.promote("digits", 1, reason="r", actor="carl").to_number == 1


def test_a_principal_is_kept_without_spaces_around(guarded: Registry) -> None:
    assert guarded.approvals.grant("digits", 1, principal=" jose\u0301 ", reason="r").principal == "jos\u00e9"
