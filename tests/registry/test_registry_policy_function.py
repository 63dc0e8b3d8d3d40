from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from gate_kit import candidate, judge, logits_that_are_right, measured
from noa.settings import GateSettings, load_settings
from noa_registry import GateReport, RuleVerdict

VERDICT = "RuleVerdict(rule='r', passed=True, expected='', received='')"
TARGETS = np.arange(30) % 3
GOOD = measured(logits_that_are_right(TARGETS, np.arange(30) >= 3), TARGETS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "noa.toml").write_text('[gates.digits]\ncheck = "rules/policy.py:check"\n')
    (tmp_path / "rules").mkdir()
    (tmp_path / "a_helper_of_mine.py").write_text("LIMIT = 0.9\n")
    return tmp_path


def run(project: Path, body: str, *, holder: bool = False) -> GateReport:
    text = "from noa_registry import PolicyView, RuleVerdict\n" + textwrap.dedent(body)
    (project / "rules" / "policy.py").write_text(text)
    policy = load_settings(project).settings.gates["digits"]
    return judge(candidate(*GOOD), policy, candidate(*GOOD, reference="digits/1") if holder else None)


def only(report: GateReport) -> RuleVerdict:
    (found,) = (entry for entry in report.verdicts if entry.rule.startswith("check"))
    return found


def test_its_verdicts_become_those_of_the_gate(project: Path) -> None:
    report = run(
        project,
        """
        from a_helper_of_mine import LIMIT

        def check(view: PolicyView):
            found = view.metrics["accuracy"]
            yield RuleVerdict(rule="mine", passed=found >= LIMIT, expected=str(LIMIT), received=f"{found:.3f}")
            yield RuleVerdict(rule="other", passed=view.alias == "b", expected="b", received=view.alias)
        """,
    )
    mine, other = (entry for entry in report.verdicts if entry.rule.startswith("check"))
    assert (mine.rule, mine.passed, mine.received) == ("check.mine", True, "0.900")
    assert (other.rule, other.passed) == ("check.other", False)
    assert not report.passed


def test_what_it_prints_is_no_part_of_what_a_command_gives(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = f"""
        print("on the way in")

        def check(view):
            print("in the call")
            yield {VERDICT}
    """
    assert only(run(project, body)).passed
    out, err = capsys.readouterr()
    assert (out, err.split("\n")[:2]) == ("", ["on the way in", "in the call"])


def test_it_sees_the_holder(project: Path) -> None:
    body = """
        def check(view):
            text = f"{view.reference} {view.holder} {len(view.holder_evidence)} {sorted(view.holder_metrics)}"
            return RuleVerdict(rule="seen", passed=True, expected="", received=text)
        """
    assert only(run(project, body, holder=True)).received == "digits/2 digits/1 3 ['accuracy', 'loss']"
    assert only(run(project, body)).received == "digits/2 None 0 []"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def check(view): raise ValueError('not on Fridays')", "ValueError: not on Fridays"),
        ("def check(view): raise SystemExit(0)", "SystemExit: 0"),
        ("def check(view): import sys; sys.exit()", "SystemExit"),
        ("def check(view): return None", "NoneType"),
        ("def check(view): return True", "bool"),
        ("def check(view): return []", "holds no verdict"),
        ("def check(view): return 'passed'", "str"),
        ("def check(view): return {'passed': True}", "dict"),
        ("def check(view): return [True]", "bool True"),
        ("def check(view): return " + VERDICT.replace("True", "1"), "`passed` is True or"),
        ("def check(view): return " + VERDICT.replace("True", "'yes'"), "`passed` is True or"),
        (f"def check(view): return ({VERDICT} for _ in iter(int, 1))", "too many"),
        (f"def check(view):\n    yield {VERDICT}\n    1 / 0", "ZeroDivisionError"),
        ("def check(): return []", "takes 0 positional arguments"),
        ("def other(view): return []", "no function `check`"),
        ("check = 3", "no function `check`"),
        ("def check(view:\n", "SyntaxError"),
        ("import a_module_that_is_nowhere", "a_module_that_is_nowhere"),
        ("def check(view): view.metrics['accuracy'] = 1.0", "does not support item assignment"),
        ("def check(view): view.reference = 'digits/9'", "cannot assign to field"),
    ],
)  # fmt: skip
def test_whatever_is_no_verdict_is_a_refusal_with_its_message(project: Path, body: str, said: str) -> None:
    report = run(project, body)
    assert not report.passed
    found = only(report)
    assert not found.passed
    assert said in found.received + found.expected
    assert found.remedy is not None


def test_an_error_names_the_line(project: Path) -> None:
    found = only(run(project, "def check(view):\n    raise ValueError('no')"))
    assert found.received.endswith(f"({project / 'rules' / 'policy.py'}:3)")


def test_a_missing_file_is_refused(project: Path) -> None:
    policy = load_settings(project).settings.gates["digits"]
    report = judge(candidate(*GOOD), policy)
    assert not report.passed
    assert "no such file" in only(report).received


def test_what_it_changes_does_not_reach_the_other_rules(project: Path) -> None:
    (project / "noa.toml").write_text(
        '[gates.digits]\ncheck = "rules/policy.py:check"\nmin_metrics = { accuracy = 0.95 }\n'
    )
    report = run(
        project,
        """
        def check(view):
            for fact in view.evidence:
                fact.values.clear()
                fact.values["metrics"] = {"accuracy": 1.0}
            return RuleVerdict(rule="r", passed=True, expected="", received="")
        """,
    )
    assert [entry.rule for entry in report.refusals] == ["min_metrics.accuracy"]
    assert GOOD[0].values["metrics"] != {"accuracy": 1.0}


def test_the_project_is_on_the_import_path_only_during_the_call(project: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    body = """
        import a_helper_of_mine

        def check(view):
            return RuleVerdict(rule="r", passed=True, expected="", received=str(a_helper_of_mine.LIMIT))
        """
    assert only(run(project, body)).received == "0.9"
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if "helper_of_mine" in name or "policy" in name}
    assert not list(project.rglob("__pycache__"))
    (project / "a_helper_of_mine.py").write_text("LIMIT = 0.5\n")  # another project may have a module of this name
    assert only(run(project, body)).received == "0.5"


def test_long_texts_are_cut(project: Path) -> None:
    found = only(run(project, "def check(view): raise ValueError('x' * 100_000)"))
    assert len(found.received) <= 500


def test_an_interrupt_is_no_verdict(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(project, "def check(view): raise KeyboardInterrupt")


def test_it_is_asked_only_for_the_aliases_of_the_gate(project: Path) -> None:
    (project / "noa.toml").write_text('[gates.digits]\ncheck = "rules/policy.py:check"\naliases = ["production"]\n')
    assert run(project, "def check(view): raise ValueError").passed


def test_a_path_stays_as_it_was_meant_wherever_the_command_runs(project: Path) -> None:
    settings = load_settings(project / "rules").settings
    assert settings.gates["digits"].check == f"{project / 'rules' / 'policy.py'}:check"
    assert GateSettings(check="policy.py:check").check == "policy.py:check"
