from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc

from noa.errors import ConflictError, GateRefusedError, IntegrityError, InvalidInputError, NotFoundError
from noa.settings import GateSettings, RegistrySettings, Settings
from noa_registry import EXPECT_ANY, ModelVersion, Registry
from samples import mostly

RACE = Path(__file__).with_name("race_child.py")


def test_promote_moves_the_alias_and_writes_who_when_from_to_and_why(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    newest = registry.history("digits")[0]
    assert (newest.action, newest.from_number, newest.to_number) == ("promote", 2, 3)
    assert (newest.from_digest, newest.to_digest) == (promoted[1].digest, promoted[2].digest)
    assert (newest.actor, newest.reason, newest.verdict["passed"]) == ("ada", "release 3", True)
    assert registry.resolve("digits@champion").number == 3
    assert registry.resolve("digits/3").aliases == ("champion",)
    assert registry.resolve("digits/2").aliases == ()
    assert registry.resolve_digest("digits", "champion") == (3, promoted[2].digest)
    assert [entry.to_number for entry in registry.history("digits")] == [3, 2, 1]
    registry.verify_ledger()


def test_aliases_are_independent(registry: Registry, promoted: list[ModelVersion]) -> None:
    registry.promote("digits", 1, alias="staging", reason="compare", actor="bob")
    assert registry.models()[0].aliases == {"champion": 3, "staging": 1}
    assert [entry.alias for entry in registry.history("digits", alias="staging")] == ["staging"]
    with pytest.raises(NotFoundError, match="no version before 1"):
        registry.rollback("digits", alias="staging", reason="undo", actor="bob")


def test_rollback_walks_back_one_version_at_a_time_and_then_refuses(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    assert registry.rollback("digits", reason="worse", actor="bob").to_number == 2
    assert registry.rollback("digits", reason="still worse", actor="bob").to_number == 1
    with pytest.raises(NotFoundError, match="no version before 1"):
        registry.rollback("digits", reason="further", actor="bob")
    assert registry.resolve("digits@champion").number == 1
    newest = registry.history("digits")[0]
    assert (newest.action, newest.from_number, newest.to_number, newest.reason) == ("rollback", 2, 1, "still worse")
    assert newest.verdict["passed"] is True
    registry.verify_ledger()


def test_a_holder_that_was_not_expected_is_told_with_who_put_it_there_and_when(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    """Also to somebody who moved the alias alone: it was not moved by somebody else."""
    with pytest.raises(ConflictError) as caught:
        registry.promote("digits", 3, reason="r", actor="ada", expect=1)
    assert caught.value.what == "`digits@champion` is not held by version 1"
    told = r"version 3, put there by ada at [\d-]{10} [\d:]{8} UTC in place of version 2 \(.*\)"
    assert re.fullmatch(told, str(caught.value.received))
    with pytest.raises(ConflictError, match="is held already"):
        registry.promote("digits", 3, reason="r", actor="ada", expect=None)
    with pytest.raises(ConflictError, match="nobody holds `digits@staging`; expected version 1; received no holder"):
        registry.promote("digits", 3, alias="staging", reason="r", actor="ada", expect=1)


def test_a_rollback_for_which_somebody_else_was_faster_names_them_also_at_the_oldest_version(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    registry.rollback("digits", reason="worse", actor="bob", expect=3)
    registry.rollback("digits", reason="still worse", actor="bob", expect=2)
    with pytest.raises(ConflictError, match=r"version 1, put there by bob .*still worse"):
        registry.rollback("digits", reason="me too", actor="eve", expect=2)


def test_previous_tells_where_a_rollback_would_go_and_moves_nothing(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    assert registry.previous("digits") == 2
    assert registry.resolve("digits@champion").number == 3
    assert registry.rollback("digits", reason="r", actor="bob").to_number == 2


def test_rollback_after_a_rollback_and_a_promotion_follows_the_stack(
    registry: Registry, promoted: list[ModelVersion]
) -> None:
    registry.rollback("digits", reason="r", actor="bob")
    registry.promote("digits", 1, reason="p", actor="bob")
    assert registry.rollback("digits", reason="r", actor="bob").to_number == 2
    assert registry.rollback("digits", reason="r", actor="bob").to_number == 1


def test_rollback_of_what_does_not_exist_is_refused(registry: Registry, version: ModelVersion) -> None:
    with pytest.raises(NotFoundError, match="no model `none`"):
        registry.rollback("none", reason="r", actor="bob")
    with pytest.raises(NotFoundError, match="`digits@champion` does not exist"):
        registry.rollback("digits", reason="r", actor="bob")


def test_rollback_verifies_the_bytes(registry: Registry, stored: Any, promoted: list[ModelVersion]) -> None:
    stored.write("digits", promoted[1].uid, "formats/onnx/model.onnx", b"other")
    with pytest.raises(GateRefusedError, match=r"model\.onnx"):
        registry.rollback("digits", reason="r", actor="bob")
    assert registry.resolve("digits@champion").number == 3


def test_expect_names_the_holder_that_must_be_there(registry: Registry, promoted: list[ModelVersion]) -> None:
    with pytest.raises(ConflictError, match="version 3, put there by ada") as caught:
        registry.promote("digits", 1, reason="r", actor="bob", expect=2)
    assert caught.value.facts["holder"] == 3
    with pytest.raises(ConflictError, match="expected no holder"):
        registry.promote("digits", 1, reason="r", actor="bob", expect=None)
    with pytest.raises(ConflictError, match="received no holder"):
        registry.promote("digits", 1, alias="staging", reason="r", actor="bob", expect=3)
    with pytest.raises(ConflictError):
        registry.rollback("digits", reason="r", actor="bob", expect=2)
    assert registry.promote("digits", 1, reason="r", actor="bob", expect=3).from_number == 3
    assert registry.promote("digits", 1, alias="staging", reason="r", actor="bob", expect=None).from_number is None
    assert registry.promote("digits", 2, reason="r", actor="bob", expect=EXPECT_ANY).from_number == 1


def test_promoting_the_holder_again_writes_nothing(registry: Registry, promoted: list[ModelVersion]) -> None:
    again = registry.promote("digits", 3, reason="run again", actor="bob")
    assert (again.sequence, again.actor) == (3, "ada")
    assert len(registry.history("digits")) == 3
    assert registry.rollback("digits", reason="r", actor="bob").to_number == 2


def test_a_move_needs_a_reason_an_actor_and_a_proper_alias(registry: Registry, version: ModelVersion) -> None:
    for change in ({"reason": " "}, {"actor": ""}, {"alias": "Champion"}, {"alias": "latest"}):
        arguments: dict[str, Any] = {"reason": "r", "actor": "a", "alias": "champion", **change}
        with pytest.raises(InvalidInputError):
            registry.promote("digits", 1, **arguments)
    with pytest.raises(NotFoundError, match="no version 2"):
        registry.promote("digits", 2, reason="r", actor="a")
    assert registry.history("digits") == []


@pytest.mark.parametrize("file", ["formats/onnx/model.onnx", "formats/torch/weights.safetensors", "MLmodel"])
def test_tampered_files_fail_the_gate_with_a_verdict_that_names_the_file(
    registry: Registry, stored: Any, version: ModelVersion, file: str
) -> None:
    stored.write("digits", version.uid, file, stored.read("digits", version.uid, file) + b" ")
    name = Path(file).name
    with pytest.raises(GateRefusedError, match=name) as caught:
        registry.promote("digits", 1, reason="r", actor="a")
    report: Any = caught.value.facts["report"]
    assert [verdict.rule for verdict in report.refusals] == ["bytes"]
    assert name in report.refusals[0].received
    assert registry.check("digits", 1) == report
    assert (registry.history("digits"), registry.resolve_digest("digits", "champion")) == ([], None)


def test_a_refused_promotion_leaves_alias_ledger_and_mlflow_as_they_were(
    registry: Registry, promoted: list[ModelVersion], formats: Any
) -> None:
    registry.register(formats.draft(evidence=()), actor="ada")
    with pytest.raises(GateRefusedError, match=r"equivalence\.onnx"):
        registry.promote("digits", 4, reason="r", actor="a")
    assert registry.resolve("digits@champion").number == 3
    assert len(registry.history("digits")) == 3
    assert registry.mirror_discrepancies() == []


def test_a_comparison_that_failed_once_refuses_whatever_is_attached_later(
    registry: Registry, version: ModelVersion, formats: Any
) -> None:
    registry.attach("digits", 1, [formats.equivalence(passed=False)])
    for passed in (False, True):
        with pytest.raises(GateRefusedError, match="failed"):
            registry.promote("digits", 1, reason="r", actor="a")
        registry.attach("digits", 1, [formats.equivalence(passed=passed)])
    with pytest.raises(GateRefusedError, match="failed"):
        registry.promote("digits", 1, reason="r", actor="a")


def test_metric_limits_of_the_model_are_applied(settings: RegistrySettings, formats: Any) -> None:
    gates = {"digits": GateSettings(min_metrics={"accuracy": 0.9}, max_regression={"accuracy": 0.01})}
    with Registry.open(settings, gates=gates) as registry:
        for accuracy in (0.95, 0.93, 0.945, 0.5):
            facts = (formats.equivalence(), formats.metrics(accuracy=accuracy))
            registry.register(formats.draft(evidence=facts), actor="a")
        registry.promote("digits", 1, reason="r", actor="a")
        with pytest.raises(GateRefusedError, match=r"at least 0\.94"):
            registry.promote("digits", 2, reason="r", actor="a")
        assert registry.promote("digits", 3, reason="r", actor="a").to_number == 3
        with pytest.raises(GateRefusedError, match=r"min_metrics\.accuracy"):
            registry.promote("digits", 4, reason="r", actor="a")
        assert registry.rollback("digits", reason="r", actor="a").to_number == 1


def test_who_leaves_the_policy_out_is_refused_where_the_ledger_or_a_check_knows_of_one(
    settings: RegistrySettings, formats: Any
) -> None:
    strict = {"digits": GateSettings(min_metrics={"accuracy": 0.9})}
    with Registry.open(settings, gates=strict) as registry:
        for accuracy in (0.95, 0.96, 0.5):
            facts = (formats.equivalence(), formats.metrics(accuracy=accuracy))
            registry.register(formats.draft(evidence=facts), actor="a")
        assert not registry.check("digits", 3, alias="staging").passed
        registry.promote("digits", 1, reason="r", actor="a")
        registry.promote("digits", 2, reason="r", actor="a")
        registry.rollback("digits", reason="r", actor="a")
        policies = [entry.verdict.get("policy") for entry in registry.history("digits")]
        assert len(set(policies)) == 1 and str(policies[0]).startswith("sha256:")
    elsewhere = {"digits": GateSettings(aliases=("nobody",)), "cats": GateSettings()}
    for gates in (None, {}, elsewhere):
        with Registry.open(settings, gates=gates) as ungated:
            before = ungated.history("digits")
            for number, alias in ((2, "champion"), (3, "champion"), (3, "staging")):
                with pytest.raises(GateRefusedError, match="policy: expected a policy that guards") as caught:
                    ungated.promote("digits", number, alias=alias, reason="r", actor="eve")
                assert not ungated.check("digits", number, alias=alias).passed  # which wipes nothing
                assert "policy" in [verdict.rule for verdict in caught.value.facts["report"].refusals]  # pyright: ignore[reportAttributeAccessIssue]  # facts hold any value
            assert ungated.history("digits") == before
    with Registry.open(settings, gates={"digits": GateSettings()}) as nothing_asked:
        entry = nothing_asked.promote("digits", 3, reason="the empty table says so", actor="ada")
        assert entry.verdict["policy"] not in (None, policies[0])


def test_all_settings_of_a_project_bring_its_gates(settings: RegistrySettings, formats: Any, tmp_path: Path) -> None:
    project = Settings(root=tmp_path, registry=settings, gates={"digits": GateSettings(min_metrics={"accuracy": 0.9})})
    with Registry.open(project) as registry:
        registry.register(formats.draft(evidence=(formats.equivalence(), formats.metrics(accuracy=0.5))), actor="a")
        with pytest.raises(GateRefusedError, match=r"min_metrics\.accuracy"):
            registry.promote("digits", 1, reason="r", actor="a")


def test_a_format_added_while_the_bytes_are_hashed_is_hashed_too(
    registry: Registry, formats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noa_registry.sealed_files import SealedFiles

    registry.register(formats.draft(formats={"torch": formats.torch}, evidence=()), actor="a")
    hashed: list[list[str]] = []
    real = SealedFiles.verify

    def slow(self: SealedFiles, version: ModelVersion, **options: Any) -> None:
        real(self, version, **options)
        hashed.append(sorted(version.formats))
        if len(hashed) == 1:
            registry.add_format("digits", 1, "onnx", formats.onnx, evidence=[formats.equivalence()], actor="b")

    monkeypatch.setattr(SealedFiles, "verify", slow)
    entry = registry.promote("digits", 1, reason="r", actor="a")
    assert hashed == [["torch"], ["onnx", "torch"]]
    assert [v["rule"] for v in entry.verdict["verdicts"]] == ["bytes", "equivalence.onnx"]  # type: ignore[union-attr]


@pytest.mark.parametrize("steps", mostly("chaos", [8, 25], sample=[8]))
def test_promotions_and_rollbacks_at_once_are_never_taken_for_tampering(
    settings: RegistrySettings, registry: Registry, promoted: list[ModelVersion], steps: int
) -> None:
    def move(turn: int) -> list[str]:
        problems: list[str] = []
        with Registry.open(settings) as mine:
            for step in range(steps):
                try:
                    if turn % 2:
                        mine.promote("digits", 1 + (turn + step) % 3, reason="r", actor=f"p{turn}")
                    else:
                        mine.rollback("digits", reason="r", actor=f"r{turn}")
                except (ConflictError, NotFoundError):
                    pass  # somebody was faster, or there is nothing to go back to
                except IntegrityError as error:
                    problems.append(str(error))
        return problems

    with ThreadPoolExecutor(6) as pool:
        assert [problem for found in pool.map(move, range(6)) for problem in found] == []
    registry.verify_ledger()


def race(settings: RegistrySettings, numbers: list[int], *, expect: int | None, **more: Any) -> list[dict[str, Any]]:
    request = {"settings": settings.model_dump(mode="json"), "numbers": numbers, "expect": expect, **more}
    command = [sys.executable, str(RACE), json.dumps(request)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("dialect", "racers"),
    mostly(
        "chaos",
        [("sqlite", 50), ("postgresql", 50), ("postgresql", 16)],
        sample=[("sqlite", 50), ("postgresql", 16)],
    ),
)
def test_of_many_processes_that_expect_the_same_holder_exactly_one_wins(
    registry: Registry, settings: RegistrySettings, formats: Any, racers: int
) -> None:
    for _ in range(5):
        registry.register(formats.draft(), actor="ada")
    registry.promote("digits", 1, reason="first", actor="ada")
    answers = race(settings, [2 + racer % 4 for racer in range(racers)], expect=1)
    winners = [answer for answer in answers if "to" in answer]
    losers = [answer for answer in answers if answer.get("error") == "ConflictError"]
    assert (len(winners), len(losers)) == (1, racers - 1), answers
    winner = winners[0]
    moved_at = f"{registry.history('digits')[0].created_at:%Y-%m-%d %H:%M:%S} UTC in place of version 1"
    put_there = f"version {winner['to']}, put there by {winner['actor']} at {moved_at} (race of {winner['to']})"
    assert {(loser["holder"], loser["received"]) for loser in losers} == {(winner["to"], put_there)}
    assert registry.resolve("digits@champion").number == winner["to"]
    assert [entry.to_number for entry in registry.history("digits")] == [winner["to"], 1]
    assert [event.kind for event in registry.events.read("test")].count("alias.promoted") == 2
    assert registry.mirror_discrepancies() == []
    registry.verify_ledger()


@pytest.mark.local_files  # about rows only
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE noa_ledger SET reason = 'innocent' WHERE sequence = 2", "row 2"),
        ("UPDATE noa_ledger SET actor = 'eve' WHERE sequence = 3", "row 3"),
        ("DELETE FROM noa_ledger WHERE sequence = 1", "row 1"),
        ("DELETE FROM noa_ledger WHERE sequence = 2", "row 2"),
        ("DELETE FROM noa_ledger WHERE sequence = 3", "digits@champion"),
        ("UPDATE noa_aliases SET number = 1", "digits@champion"),
        ("DELETE FROM noa_aliases", "digits@champion"),
    ],
)
def test_a_ledger_that_was_tampered_with_is_detected_and_the_place_named(
    registry: Registry, tamper: Any, promoted: list[ModelVersion], statement: str, message: str
) -> None:
    registry.verify_ledger()
    tamper(statement)
    with pytest.raises(IntegrityError, match=message):
        registry.verify_ledger()


@pytest.mark.local_files  # about rows only
def test_the_database_refuses_to_change_what_was_written(execute: Any, promoted: list[ModelVersion]) -> None:
    for table in ("noa_ledger", "noa_evidence", "noa_versions", "noa_formats"):
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET created_at = 'never'"):
            with pytest.raises(sqlalchemy.exc.IntegrityError, match="never changed or deleted"):
                execute(statement)


@pytest.mark.local_files  # about rows only
@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE noa_formats SET digest = 'sha256:{'e' * 64}' WHERE format = 'onnx'",
        "UPDATE noa_formats SET manifest = '[]' WHERE format = 'torch'",
        "UPDATE noa_versions SET dataset_digest = 'sha256:other'",
        "UPDATE noa_versions SET signature = replace(signature, 'logits', 'scores')",
        "UPDATE noa_versions SET wrapper = 'nonsense'",
    ],
)
def test_a_record_that_was_changed_is_not_resolved(
    registry: Registry, tamper: Any, version: ModelVersion, statement: str
) -> None:
    tamper(statement)
    with pytest.raises(IntegrityError):
        registry.resolve("digits/1")


def test_promotions_of_different_models_share_one_chain(
    registry: Registry, formats: Any, make_formats: Callable[[int], Any]
) -> None:
    registry.register(formats.draft(name="a"), actor="ada")
    registry.register(make_formats(7).draft(name="b"), actor="ada")
    first = registry.promote("a", 1, reason="r", actor="ada")
    second = registry.promote("b", 1, reason="r", actor="ada")
    assert (second.sequence, second.previous_hash) == (2, first.hash)
