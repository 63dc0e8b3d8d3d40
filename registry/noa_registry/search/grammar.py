"""The language of search: terms that must all hold, e.g. `name:digits tag.team=vision metric.accuracy>=0.98`.

A term is a key, an operator and a value; a word alone is a part of a model's name, or the beginning of a digest
(`sha256:ab12`); `-` before a term negates it; a value or key with spaces stands in double quotes
(`tag."cost center"="a b"`). A text that ends in `*` is a beginning, `*` alone is any value. `created` compares with a
day, an instant or an age: `created>2026-01-31`, `created<7d` (younger than that).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias, cast

from noa.digests import sha256_bytes
from noa.durations import find_duration
from noa.errors import InvalidInputError
from noa_registry.database import to_text
from noa_registry.search.parameters import PARAM_PREFIX, parameter_text

Comparison: TypeAlias = Literal["=", ">", ">=", "<", "<="]
TextMatch: TypeAlias = Literal["exact", "prefix", "part", "any"]
TextField: TypeAlias = Literal["name", "alias", "digest", "label"]
LABELS: Final = ("format", "native", "dataset", "by", "run", "commit")
"""Keys whose values are labels of the version; each tag is one more, `tag.KEY`, each parameter too, `param.KEY`."""
_PREFIXED: Final = ("digest", "dataset", "commit")
"""Names of bytes, which nobody types in full: their beginning is enough."""
_KEYS: Final = (
    "name",
    "number",
    "tag.KEY",
    "param.KEY",
    "metric.NAME",
    "digest",
    *LABELS,
    "alias",
    "created",
    "is",
    "sort",
)
_STATES: Final = ("trashed", "live")
_TERM = re.compile(
    r"""(?P<minus>-?)
        (?P<key>[A-Za-z_]+)
        (?:\.(?P<sub>"(?:[^"\\]|\\.)*"|[^\s:=<>!"]+))?
        (?P<operator>>=|<=|!=|==|:|=|>|<)
        (?P<value>"(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|$)""",
    re.VERBOSE,
)
_WORD = re.compile(r'(?P<minus>-?)(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]+)(?=\s|$)')
_DIGEST_WORD = re.compile(r"(?P<minus>-?)(?P<value>sha256:[0-9a-fA-F]+\*?)(?=\s|$)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTerm:
    """A text of the version; `key` is the label's key where `field` is `label`."""

    field: TextField
    key: str
    match: TextMatch
    text: str
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTerm:
    """Some one value that was measured of a metric meets all comparisons; without one, any value does."""

    metric: str
    comparisons: tuple[tuple[Comparison, float], ...]
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberTerm:
    """The version's number."""

    comparison: Comparison
    value: int
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeTerm:
    """Created at `low` or later and before `high`, as times are stored."""

    low: str | None
    high: str | None
    negated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTerm:
    """Held by an alias."""

    negated: bool


Term: TypeAlias = TextTerm | MetricTerm | NumberTerm | TimeTerm | LiveTerm


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query that was read. `sort_metric` None: by time of registration. `trashed`: only what is in the trash."""

    terms: tuple[Term, ...]
    trashed: bool
    sort_metric: str | None
    ascending: bool
    digest: str


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


def parse_query(text: str, *, now: datetime) -> Query:
    """Read a query. Ages are counted back from `now`.

    Raises:
        InvalidInputError: names the column, what is expected there and what was meant perhaps; `facts["column"]`.
    """
    terms: list[Term] = []
    trashed, sort = False, None
    for token in _tokens(text):
        if token.key == "sort":
            if sort is not None:
                raise _refuse(token, "the query sorts twice", expected="one `sort:`")
            sort = _sort(token)
        elif token.key == "is" and token.value == "trashed":
            if token.negated and trashed:
                raise _refuse(token, "no version is and is not in the trash", expected="one of them")
            trashed = trashed or not token.negated
        else:
            terms.append(_term(token, now))
    metric, ascending = sort or (None, False)
    return Query(
        terms=_merged(terms),
        trashed=trashed,
        sort_metric=metric,
        ascending=ascending,
        digest=sha256_bytes(" ".join(text.split()).encode()),
    )


def _merged(terms: list[Term]) -> tuple[Term, ...]:
    """Make one term of all about one metric: `metric.loss>0.1 metric.loss<0.2` means one value between the two."""
    wanted: dict[str, MetricTerm] = {}
    others: list[Term] = []
    for term in terms:
        if not isinstance(term, MetricTerm) or term.negated:
            others.append(term)
            continue
        known = wanted.get(term.metric, term)
        together = dict.fromkeys((*known.comparisons, *term.comparisons))
        wanted[term.metric] = MetricTerm(metric=term.metric, comparisons=tuple(together), negated=False)
    return (*others, *wanted.values())


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = _TERM.match(text, position)
        digest = None if found else _DIGEST_WORD.match(text, position)
        word = None if found else digest or _WORD.match(text, position)
        if found is not None:
            yield _keyed(found)
        elif digest is not None:
            yield _Token(position + 1, digest[0], "digest", None, ":", digest["value"], False, bool(digest["minus"]))
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
    match token.key:
        case "":
            return _text(token, "name", default="part")
        case "name" | "alias" | "digest":
            _no_sub(token)
            return _text(token, token.key, default="prefix" if token.key == "digest" else "exact")
        case "tag":
            return _text(token, "label", key=f"tag.{_sub(token)}")
        case "param":
            return _param(token)
        case "metric":
            return _metric(token)
        case "number":
            _no_sub(token)
            number = _number(token, token.value, whole=True)
            return NumberTerm(comparison=_comparison(token), value=int(number), negated=token.negated)
        case "created":
            _no_sub(token)
            return _time(token, now)
        case "is":
            _equality(token)
            if token.value != "live":
                raise _refuse(
                    token, f"`is:{token.value}` is unknown", expected=" or ".join(f"`is:{s}`" for s in _STATES),
                    remedy=_did_you_mean(token.value, _STATES, "is:"),
                )  # fmt: skip
            return LiveTerm(negated=token.negated)
        case key if key in LABELS:
            _no_sub(token)
            return _text(token, "label", key=key, default="prefix" if key in _PREFIXED else "exact")
        case _:
            known = [key.partition(".")[0] + ("." if "." in key else "") for key in _KEYS]
            raise _refuse(
                token,
                f"`{token.key}` is no key",
                expected=", ".join(f"`{key}`" for key in _KEYS),
                remedy=_did_you_mean(token.key, known),
            )


def _text(token: _Token, field: TextField, *, key: str = "", default: TextMatch = "exact") -> TextTerm:
    _equality(token)
    match, text = default, token.value
    if text == "*" and not token.is_quoted:
        match, text = "any", ""
    elif text.endswith("*") and not token.is_quoted:
        match, text = "prefix", text[:-1]
    if field == "digest" or key == "dataset":
        text = _digest_text(token, text) if match != "any" else text
    return TextTerm(field=field, key=key, match=match, text=text, negated=token.negated)


def _param(token: _Token) -> TextTerm:
    term = _text(token, "label", key=f"{PARAM_PREFIX}{_sub(token)}")
    return replace(term, text=parameter_text(term.text)) if term.match == "exact" else term


def _digest_text(token: _Token, text: str) -> str:
    digits = text.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{1,64}", digits):
        raise _refuse(token, f"`{text}` is no beginning of a digest", expected="hexadecimal digits, e.g. `sha256:ab12`")
    return f"sha256:{digits}"


def _metric(token: _Token) -> MetricTerm:
    metric = _sub(token)
    if token.value == "*" and token.operator in ":=":
        return MetricTerm(metric=metric, comparisons=(), negated=token.negated)
    comparison = (_comparison(token), _number(token, token.value, whole=False))
    return MetricTerm(metric=metric, comparisons=(comparison,), negated=token.negated)


def _time(token: _Token, now: datetime) -> TimeTerm:
    age = find_duration(token.value)
    comparison = _comparison(token)
    if age is not None:
        if comparison == "=":
            raise _refuse(token, "an age is compared, not met exactly", expected=f"`created<{token.value}`")
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
    return TimeTerm(
        low=None if low is None else to_text(low), high=None if high is None else to_text(high), negated=negated
    )


def _sort(token: _Token) -> tuple[str | None, bool]:
    _equality(token)
    if token.negated:
        raise _refuse(token, "a sort cannot be negated", expected="`sort:created:asc` for the oldest first")
    what, direction = token.value, "desc"
    for ending in ("asc", "desc"):
        if what.endswith(f":{ending}"):
            what, direction = what[: -len(ending) - 1], ending
    if what == "created":
        return None, direction == "asc"
    if what.startswith("metric.") and len(what) > len("metric."):
        return what.removeprefix("metric."), direction == "asc"
    raise _refuse(
        token,
        f"`{token.value}` is nothing to sort by",
        expected="`sort:created` or `sort:metric.NAME`, with `:asc` for the smallest first",
        remedy=f"Did you mean `sort:metric.{what}`?" if re.fullmatch(r"[a-z][\w.]*", what) else None,
    )


def _sub(token: _Token) -> str:
    if not token.sub:
        raise _refuse(token, f"`{token.key}` names no {token.key}", expected=f"e.g. `{token.key}.NAME=VALUE`")
    return token.sub


def _no_sub(token: _Token) -> None:
    if token.sub is not None:
        raise _refuse(
            token, f"`{token.key}` has no parts", expected=f"`{token.key}:VALUE`", remedy=f"A tag is `tag.{token.sub}`"
        )


def _equality(token: _Token) -> None:
    if token.operator not in ":=":
        shown = token.key if token.sub is None else f"{token.key}.{token.sub}"
        raise _refuse(token, f"`{shown}` has no order", expected=f"`{shown}:{token.value}`")


def _comparison(token: _Token) -> Comparison:
    return cast("Comparison", "=" if token.operator == ":" else token.operator)


def _number(token: _Token, text: str, *, whole: bool) -> float:
    try:
        value = float(int(text)) if whole else float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or (whole and abs(value) >= 1 << 31):
        raise _refuse(token, f"`{text}` is no number", expected="a whole number" if whole else "a number, e.g. `0.98`")
    return value


def _unquote(text: str) -> tuple[str, bool]:
    if text.startswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1]), True
    return text, False


def _unreadable(text: str, position: int) -> InvalidInputError:
    rest = text[position:]
    open_quote = rest.count('"') % 2 == 1
    return InvalidInputError(
        "a quote is not closed" if open_quote else "a term is not readable",
        where=f"column {position + 1} of the query",
        expected='KEY, operator and VALUE, e.g. `tag.team=vision`; text with spaces as "a b"',
        received=f"`{rest.split()[0][:60]}`",
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
