"""The language of `noa runs list`, that of `noa models search` with the keys of runs.

Terms must all hold: a key, an operator and a value (`backend:torch`, `metric.accuracy>=0.98`, `started<7d`); a word
alone is a part of the run's name; `-` before a term negates it; a text with spaces stands in double quotes. A text that
ends in `*` is a beginning, `*` alone is any value.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias, cast

from noa.digests import sha256_bytes
from noa.durations import find_duration
from noa.errors import InvalidInputError

Comparison: TypeAlias = Literal["=", ">", ">=", "<", "<="]
TextMatch: TypeAlias = Literal["exact", "prefix", "part", "any"]
TextField: TypeAlias = Literal[
    "name", "run", "model", "recipe", "backend", "experiment", "dataset", "commit", "by", "version", "tag", "param"
]
Status: TypeAlias = Literal["running", "interrupted", "scheduled", "finished", "failed", "killed"]
STATUSES: Final[tuple[Status, ...]] = ("running", "interrupted", "scheduled", "finished", "failed", "killed")
_TEXTS: Final = ("name", "run", "model", "recipe", "backend", "experiment", "dataset", "commit", "by", "version")
_PREFIXED: Final = ("run", "dataset", "commit")
"""Names that nobody types in full: their beginning is enough."""
_NAMED: Final = ("tag", "param")
_KEYS: Final = (*_TEXTS, "tag.KEY", "param.KEY", "metric.NAME", "status", "started", "is", "sort")
_TERM = re.compile(
    r"""(?P<minus>-?)
        (?P<key>[A-Za-z_]+)
        (?:\.(?P<sub>"(?:[^"\\]|\\.)*"|[^\s:=<>!"]+))?
        (?P<operator>>=|<=|!=|==|:|=|>|<)
        (?P<value>"(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|$)""",
    re.VERBOSE,
)
_WORD = re.compile(r'(?P<minus>-?)(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]+)(?=\s|$)')
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TICK = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTerm:
    """A text of the run; `key` is that of the tag or parameter where `field` is one."""

    field: TextField
    key: str
    match: TextMatch
    text: str
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusTerm:
    """How the run stands. `interrupted`: it is recorded as running, and its process is gone."""

    status: Status
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTerm:
    """The value of a metric (`metric_keys`), compared; `comparison` None: any value."""

    metric: str
    comparison: Comparison | None
    value: float
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeTerm:
    """Started at `low_ms` or later and before `high_ms`, milliseconds since 1970."""

    low_ms: int | None
    high_ms: int | None
    negated: bool


Term: TypeAlias = TextTerm | StatusTerm | MetricTerm | TimeTerm


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """A query that was read. `sort_metric` None: by the time of the start. `deleted`: only runs that were deleted."""

    terms: tuple[Term, ...]
    deleted: bool
    sort_metric: str | None
    ascending: bool
    digest: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the query names, the one that it sorts by first."""
        named = (term.metric for term in self.terms if isinstance(term, MetricTerm) and not term.negated)
        return tuple(dict.fromkeys((*(() if self.sort_metric is None else (self.sort_metric,)), *named)))


@dataclass(frozen=True, slots=True)
class _Token:
    column: int
    text: str
    key: str
    sub: str | None
    operator: str
    value: str
    is_quoted: bool
    negated: bool


def parse_run_query(text: str, *, now: datetime) -> RunQuery:
    """Read a query. Ages are counted back from `now`.

    Raises:
        InvalidInputError: names the column, what is expected there and what was meant perhaps; `facts["column"]`.
    """
    terms: list[Term] = []
    deleted, sort = False, None
    for token in _tokens(text):
        if token.key == "sort":
            if sort is not None:
                raise _refuse(token, "the query sorts twice", expected="one `sort:`")
            sort = _sort(token)
        elif token.key == "is":
            deleted = deleted or _is_deleted(token)
        else:
            terms.append(_term(token, now))
    metric, ascending = sort or (None, False)
    return RunQuery(
        terms=tuple(terms),
        deleted=deleted,
        sort_metric=metric,
        ascending=ascending,
        digest=sha256_bytes(" ".join(text.split()).encode()),
    )


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = _TERM.match(text, position)
        word = None if found else _WORD.match(text, position)
        if found is not None:
            yield _keyed(found)
        elif word is not None and not re.search(r"[:=<>]", word["value"].split('"')[0]):
            value, is_quoted = _unquote(word["value"])
            yield _Token(position + 1, word[0], "", None, ":", value, is_quoted, bool(word["minus"]))
        else:
            raise _unreadable(text, position)
        position = (found or cast("re.Match[str]", word)).end()


def _keyed(found: re.Match[str]) -> _Token:
    value, is_quoted = _unquote(found["value"])
    sub = None if found["sub"] is None else _unquote(found["sub"])[0]
    token = _Token(
        found.start() + 1, found[0], found["key"], sub, found["operator"], value, is_quoted, bool(found["minus"])
    )
    if not value and not is_quoted:
        raise _refuse(token, "a term has no value", expected=f"e.g. `{token.key}{token.operator}VALUE`")
    if token.operator in ("!=", "=="):
        plain = found[0].removeprefix("-").replace(token.operator, "=", 1)
        remedy = f"Write `-{plain}`" if token.operator == "!=" else f"Write `{plain}`"
        raise _refuse(token, f"`{token.operator}` is no operator", expected=": = > >= < <=", remedy=remedy)
    return token


def _term(token: _Token, now: datetime) -> Term:
    if token.key == "metric":
        return _metric(token)
    if token.key in _NAMED:
        return _text(token, cast("TextField", token.key), key=_sub(token))
    if token.sub is not None:
        raise _refuse(token, f"`{token.key}` has no parts", expected=f"`{token.key}:VALUE`")
    if token.key == "":
        return _text(token, "name", default="part")
    if token.key == "status":
        return _status(token)
    if token.key == "started":
        return _time(token, now)
    if token.key in _TEXTS:
        return _text(token, cast("TextField", token.key), default="prefix" if token.key in _PREFIXED else "exact")
    raise _refuse(
        token,
        f"`{token.key}` is no key",
        expected=", ".join(f"`{key}`" for key in _KEYS),
        remedy=_did_you_mean(token.key, [key.partition(".")[0] + ("." if "." in key else "") for key in _KEYS]),
    )


def _text(token: _Token, field: TextField, *, key: str = "", default: TextMatch = "exact") -> TextTerm:
    _equality(token)
    match, text = default, token.value
    if text == "*" and not token.is_quoted:
        match, text = "any", ""
    elif text.endswith("*") and not token.is_quoted:
        match, text = "prefix", text[:-1]
    if field == "dataset" and match != "any":
        text = f"sha256:{text.lower().removeprefix('sha256:')}"
    return TextTerm(field=field, key=key, match=match, text=text, negated=token.negated)


def _status(token: _Token) -> StatusTerm:
    _equality(token)
    value = token.value.lower()
    if value not in STATUSES:
        raise _refuse(
            token,
            f"`{token.value}` is no status",
            expected=", ".join(f"`{status}`" for status in STATUSES),
            remedy=_did_you_mean(value, STATUSES, "status:"),
        )
    return StatusTerm(status=value, negated=token.negated)


def _metric(token: _Token) -> MetricTerm:
    metric = _sub(token)
    if token.value == "*" and token.operator in ":=":
        return MetricTerm(metric=metric, comparison=None, value=0.0, negated=token.negated)
    try:
        value = float(token.value)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _refuse(token, f"`{token.value}` is no number", expected="a number, e.g. `0.98`")
    return MetricTerm(metric=metric, comparison=_comparison(token), value=value, negated=token.negated)


def _time(token: _Token, now: datetime) -> TimeTerm:
    age = find_duration(token.value)
    comparison = _comparison(token)
    if age is not None:
        if comparison == "=":
            raise _refuse(token, "an age is compared, not met exactly", expected=f"`started<{token.value}`")
        moment = now - age
        turned = cast("Comparison", comparison.translate(str.maketrans("<>", "><")))  # a smaller age is a later time
        return _between(moment, moment + _TICK, turned, negated=token.negated)
    try:
        begin = datetime.fromisoformat(token.value)
        begin = begin.replace(tzinfo=UTC) if begin.tzinfo is None else begin.astimezone(UTC)
        end = begin + (timedelta(days=1) if _DAY.fullmatch(token.value) else _TICK)
    except (ValueError, OverflowError) as exc:
        raise _refuse(
            token,
            f"`{token.value}` is no time",
            expected="a day `2026-01-31`, an instant `2026-01-31T12:00` (UTC), "
            "or an age of at most a century `30m`, `12h`, `7d`, `2w`",
        ) from exc
    return _between(begin, end, comparison, negated=token.negated)


def _between(begin: datetime, end: datetime, comparison: Comparison, *, negated: bool) -> TimeTerm:
    low = {">": end, ">=": begin, "=": begin}.get(comparison)
    high = {"<": begin, "<=": end, "=": end}.get(comparison)
    return TimeTerm(low_ms=_milliseconds(low), high_ms=_milliseconds(high), negated=negated)


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)


def _is_deleted(token: _Token) -> bool:
    _equality(token)
    if token.value != "deleted":
        raise _refuse(token, f"`is:{token.value}` is unknown", expected="`is:deleted`")
    return not token.negated


def _sort(token: _Token) -> tuple[str | None, bool]:
    _equality(token)
    if token.negated:
        raise _refuse(token, "a sort cannot be negated", expected="`sort:started:asc` for the oldest first")
    what, direction = token.value, "desc"
    for ending in ("asc", "desc"):
        if what.endswith(f":{ending}"):
            what, direction = what[: -len(ending) - 1], ending
    if what == "started":
        return None, direction == "asc"
    if what.startswith("metric.") and len(what) > len("metric."):
        return what.removeprefix("metric."), direction == "asc"
    raise _refuse(
        token,
        f"`{token.value}` is nothing to sort by",
        expected="`sort:started` or `sort:metric.NAME`, with `:asc` for the smallest first",
        remedy=f"Did you mean `sort:metric.{what}`?" if re.fullmatch(r"[a-z][\w.]*", what) else None,
    )


def _sub(token: _Token) -> str:
    if not token.sub:
        raise _refuse(token, f"`{token.key}` names no {token.key}", expected=f"e.g. `{token.key}.NAME=VALUE`")
    return token.sub


def _equality(token: _Token) -> None:
    if token.operator not in ":=":
        shown = token.key if token.sub is None else f"{token.key}.{token.sub}"
        raise _refuse(token, f"`{shown}` has no order", expected=f"`{shown}:{token.value}`")


def _comparison(token: _Token) -> Comparison:
    return cast("Comparison", "=" if token.operator == ":" else token.operator)


def _unquote(text: str) -> tuple[str, bool]:
    if text.startswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1]), True
    return text, False


def _unreadable(text: str, position: int) -> InvalidInputError:
    rest = text[position:]
    return InvalidInputError(
        "a quote is not closed" if rest.count('"') % 2 == 1 else "a term is not readable",
        where=f"column {position + 1} of the query",
        expected='KEY, operator and VALUE, e.g. `backend:torch`; text with spaces as "a b"',
        received=f"`{rest[:40]}`",
        column=position + 1,
    )


def _refuse(token: _Token, what: str, *, expected: str, remedy: str | None = None) -> InvalidInputError:
    return InvalidInputError(
        what,
        where=f"column {token.column} of the query",
        expected=expected,
        received=f"`{token.text}`",
        remedy=remedy,
        column=token.column,
    )


def _did_you_mean(text: str, known: tuple[str, ...] | list[str], before: str = "") -> str | None:
    close = difflib.get_close_matches(text.lower(), known, n=1)
    return f"Did you mean `{before}{close[0]}`?" if close else None
