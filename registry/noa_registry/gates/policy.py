"""The project's own rule: a Python function for what `noa.toml` cannot say.

    # policy.py                              # noa.toml: [gates.digits] check = "policy.py:check"
    from noa_registry import PolicyView, RuleVerdict

    def check(view: PolicyView) -> RuleVerdict: ...

It gets a copy of the facts and returns one or several verdicts. Whatever else happens (an error, no verdict, a `passed`
that is not a boolean) is a refusal with its message, never a pass. The file is read anew for each judgement; the
project's root is on the import path, and the project's own modules are kept, only while the function runs.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import threading
import traceback
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final, cast

from noa.errors import InvalidInputError, NoaError
from noa_registry.evidence.facts import Evidence
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.counted_values import counted_value
from noa_registry.gates.recorded_metrics import RecordedMetrics
from noa_registry.gates.report import RuleVerdict

PROJECT_FILE: Final = "noa.toml"
_MAX_VERDICTS = 100
_MAX_TEXT = 500
_MODULE = "noa_gate_policy"
_one_at_a_time = threading.RLock()  # the import path belongs to the whole process


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """What a project's function sees: copies, so that it can look at everything and change nothing.

    `metrics` are those by which the gate judges: on the test split, of the served format; of several measurements the
    worst of the version and the best of the holder. The holder's parts are empty where nobody, or the version itself,
    holds the alias.
    """

    reference: str
    alias: str
    metrics: Mapping[str, float]
    evidence: tuple[Evidence, ...]
    holder: str | None
    holder_metrics: Mapping[str, float]
    holder_evidence: tuple[Evidence, ...]


def policy_verdicts(gate_input: GateInput, check: str) -> list[RuleVerdict]:
    """Return the verdicts of the function `check`, an absolute `file.py:function`; a refusal if it fails."""
    try:
        return _call(check, _view(gate_input))
    except (Exception, SystemExit) as exc:  # noqa: BLE001  # whatever it raises means that it did not say yes
        file, _, function = check.rpartition(":")
        return [
            RuleVerdict(
                rule="check",
                passed=False,
                expected=f"verdicts of `{function}` in {file}",
                received=_cut(_describe_error(exc, file)),
                remedy=f"Mend the function, or take `check` out of the gate of `{gate_input.candidate.reference}`",
            )
        ]


def _view(gate_input: GateInput) -> PolicyView:
    candidate, rival = gate_input.candidate, gate_input.rival
    return PolicyView(
        reference=candidate.reference,
        alias=gate_input.alias,
        metrics=_metrics(gate_input, candidate),
        evidence=_copies(candidate),
        holder=None if rival is None else rival.reference,
        holder_metrics=MappingProxyType({}) if rival is None else _metrics(gate_input, rival),
        holder_evidence=() if rival is None else _copies(rival),
    )


def _metrics(gate_input: GateInput, side: Candidate) -> Mapping[str, float]:
    """Return the values by which the gate judges: of the holder on the version's rows, if it was measured there."""
    recorded, is_rival = RecordedMetrics.of(side), side is not gate_input.candidate
    if recorded.problem is not None and side.test_metrics() is not None:
        raise InvalidInputError(recorded.problem)
    if is_rival:
        recorded = recorded.on_shared(RecordedMetrics.of(gate_input.candidate))
    values: dict[str, float] = {}
    for metric in recorded.names():
        chosen = counted_value(recorded, metric, policy=gate_input.policy, as_holder=is_rival)
        if chosen is not None:
            values[metric] = chosen.value
    return MappingProxyType(values)


def _copies(candidate: Candidate) -> tuple[Evidence, ...]:
    return tuple(replace(fact, values=copy.deepcopy(dict(fact.values))) for fact in candidate.evidence)


def _call(check: str, view: PolicyView) -> list[RuleVerdict]:
    text, _, name = check.rpartition(":")
    file = Path(text)
    if not file.is_file():
        raise InvalidInputError("there is no such file", where=text, remedy="Correct `check` of the gate in `noa.toml`")
    # What it prints is for people: standard output is for what a command was asked.
    with _one_at_a_time, _on_path(_project_of(file)), redirect_stdout(sys.stderr):
        function = getattr(_load(file), name, None)
        if not callable(function):
            raise InvalidInputError(f"it has no function `{name}`", where=text)
        return _verdicts(function(view))


def _verdicts(answer: object) -> list[RuleVerdict]:
    given = [answer] if isinstance(answer, RuleVerdict) else answer
    if given is None or isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidInputError(
            "the answer is no verdict", expected="a RuleVerdict or several", received=type(answer).__name__
        )
    verdicts: list[RuleVerdict] = []
    for entry in cast("Iterable[object]", given):
        if not isinstance(entry, RuleVerdict) or not isinstance(cast("object", entry.passed), bool):
            raise InvalidInputError(
                "the answer is no verdict",
                expected="a RuleVerdict whose `passed` is True or False",
                received=f"{type(entry).__name__} {str(entry)[:80]}",
            )
        if len(verdicts) == _MAX_VERDICTS:
            raise InvalidInputError("too many verdicts", expected=f"at most {_MAX_VERDICTS}", received="more")
        verdicts.append(
            RuleVerdict(
                rule=f"check.{_cut(str(entry.rule))}",
                passed=entry.passed,
                expected=_cut(str(entry.expected)),
                received=_cut(str(entry.received)),
                remedy=None if entry.remedy is None else _cut(str(entry.remedy)),
            )
        )
    if not verdicts:
        raise InvalidInputError("the answer holds no verdict", expected="at least one RuleVerdict", received="none")
    return verdicts


def _project_of(file: Path) -> Path:
    """Return the folder of the nearest `noa.toml` above the file, else the file's own."""
    return next((folder for folder in file.parents if (folder / PROJECT_FILE).is_file()), file.parent)


@contextmanager
def _on_path(root: Path) -> Generator[None]:
    """Put `root` on the import path for the block, and forget the project's modules that were imported in it."""
    before, byte_code = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # a judgement leaves nothing in the project
    try:
        yield
    finally:
        with suppress(ValueError):  # the function took it off itself
            sys.path.remove(str(root))
        sys.dont_write_bytecode = byte_code
        for name in set(sys.modules) - before:
            if name.partition(".")[0] not in before and _is_of(sys.modules[name], root):
                del sys.modules[name]


def _is_of(module: ModuleType, root: Path) -> bool:
    """Tell whether a module is the project's own, and not e.g. of an environment that lies in its folder."""
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return place is not None and Path(place).is_relative_to(root) and "site-packages" not in Path(place).parts


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    if spec is None or spec.loader is None:
        raise InvalidInputError("it is not a Python file", where=str(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _describe_error(error: BaseException, file: str) -> str:
    if isinstance(error, NoaError):
        return str(error)
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        place = f" ({file}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
