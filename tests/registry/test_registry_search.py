"""Search finds what a filter over all versions would, page by page, and explains a query that it cannot read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies
from sqlalchemy import insert, text

from noa.errors import InvalidInputError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import Registry, SearchHit, VersionDraft
from noa_registry.database import to_text
from noa_registry.search import planning
from noa_registry.search.grammar import parse_query
from noa_registry.search.indexing import rebuild_index
from noa_registry.tables import (
    aliases,
    ledger,
    models,
    trash,
    version_labels,
    version_metrics,
    versions,
)
from noa_registry.tables import (
    formats as format_rows,
)

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter

NOW = datetime(2026, 6, 1, tzinfo=UTC)
TEAMS = ("vision", "speech", "vi*", "")
METRICS = ("accuracy", "loss", "score")
GATES = {"digits": GateSettings(directions={"score": "lower", "loss": "higher"})}


@dataclass(frozen=True)
class Made:
    """A version as the brute force sees it."""

    name: str
    number: int
    digest: str
    formats: dict[str, str]
    dataset: str
    created_at: datetime
    created_by: str
    commit: str | None
    tags: dict[str, str]
    metrics: list[tuple[str, float, str, str]]
    """Name, value, format and split, in the order of the index."""
    aliases: list[str]
    state: str | None


def references(hits: Iterable[SearchHit]) -> list[str]:
    return [hit.reference for hit in hits]


def found(registry: Registry, query: str, *, page: int = 50) -> list[str]:
    """All references, collected page by page."""
    collected: list[str] = []
    cursor: str | None = None
    while True:
        answer = registry.search(query, limit=page, cursor=cursor)
        collected += references(answer.hits)
        if answer.next_cursor is None:
            return collected
        assert len(answer.hits) == page
        cursor = answer.next_cursor


@pytest.fixture
def shelf(registry: Registry, formats: Formats) -> Registry:
    """`digits/1` to `digits/3` and `ranker/1`, registered really."""

    def draft(name: str, team: str, accuracy: float) -> VersionDraft:
        return formats.draft(
            name=name,
            tags={"team": team, "cost center": "a b"},
            evidence=(formats.equivalence(), formats.metrics(accuracy=accuracy)),
        )

    for name, team, accuracy in (
        ("digits", "vision", 0.91),
        ("digits", "speech", 0.95),
        ("digits", "vision", 0.99),
        ("ranker", "risk", 0.5),
    ):
        registry.register(draft(name, team, accuracy), actor="ada")
    registry.promote("digits", 1, reason="first", actor="ada")
    return registry


FINDS = [
    ("", ["ranker/1", "digits/3", "digits/2", "digits/1"]),
    ("digits", ["digits/3", "digits/2", "digits/1"]),
    ("IGI", ["digits/3", "digits/2", "digits/1"]),
    ("name:dig*", ["digits/3", "digits/2", "digits/1"]),
    ("name:dig", []),
    ("tag.team=vision", ["digits/3", "digits/1"]),
    ("tag.team:s*", ["digits/2"]),
    ("-tag.team=vision", ["ranker/1", "digits/2"]),
    ('tag."cost center"="a b" number:1', ["ranker/1", "digits/1"]),
    ("metric.accuracy>=0.95 sort:metric.accuracy", ["digits/3", "digits/2"]),
    ("metric.accuracy>0.5 metric.accuracy<0.99", ["digits/2", "digits/1"]),
    ("sort:metric.accuracy:asc", ["ranker/1", "digits/1", "digits/2", "digits/3"]),
    ("format:onnx alias:champion", ["digits/1"]),
    ("-is:live digits", ["digits/3", "digits/2"]),
    ("dataset:sha256:dddd number>=3", ["digits/3"]),
    ("dataset:abcd", []),
    ("created<1h by:ada commit:0000 native:torch name:ranker", ["ranker/1"]),
    ("created>2w", []),
    ("sort:created:asc digits", ["digits/1", "digits/2", "digits/3"]),
    ("is:trashed", []),
]


def test_a_query_finds_what_it_says(shelf: Registry) -> None:
    assert {query: found(shelf, query) for query, _ in FINDS} == dict(FINDS)


PARAMS = {
    "lr": 0.01,
    "epochs": 3,
    "optimizer": {"name": "adamw", "beta": 0.9},
    "amp": True,
    "note": "1e-2",
    "sizes": [4],
}


@pytest.mark.parametrize(
    ("query", "is_found"),
    [
        ("param.lr:0.01", True),
        ("param.lr=1e-2", True),
        ("param.lr:0.010", True),
        ("param.lr:0.1", False),
        ("param.epochs:3", True),
        ("param.epochs:3.0", True),
        ("-param.epochs:3", False),
        ("param.optimizer.name:ada*", True),
        ("param.optimizer.beta:*", True),
        ("param.amp:true", True),
        ("param.note:0.01", True),
        ('param.sizes:"[4]"', True),
        ("param.optimizer:adamw", False),
    ],
)
def test_a_version_is_found_by_its_parameters(
    registry: Registry, formats: Formats, query: str, *, is_found: bool
) -> None:
    registry.register(formats.draft(params=PARAMS), actor="ada")
    assert found(registry, query) == (["digits/1"] if is_found else [])
    with registry._database.write() as connection:
        assert rebuild_index(connection) == 1
    assert found(registry, query) == (["digits/1"] if is_found else [])


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("metric.acuracy>0.5", "No version has a metric `acuracy`: did you mean `metric.accuracy`?"),
        ("sort:metric.zzz", "No version has a metric `zzz`: there are `metric.accuracy`"),
        ("tag.taem=vision", "No version has a tag `taem`: did you mean `tag.team`?"),
        ("param.epoch:3", "No version has a parameter `epoch`: did you mean `param.epochs`?"),
        ("metric.accuracy>2", None),
        ("-tag.nothing:1 name:none", None),
    ],
)
def test_a_name_that_no_version_has_is_told_where_nothing_is_found(
    shelf: Registry, query: str, hint: str | None
) -> None:
    page = shelf.search(query)
    assert (page.hits, page.hint) == ((), hint)


def test_a_hit_shows_what_a_list_needs(shelf: Registry) -> None:
    (hit,) = shelf.search("alias:champion").hits
    whole = shelf.resolve("digits@champion")
    assert hit.digest == whole.digest
    assert (hit.formats, hit.aliases, hit.native) == (("onnx", "torch"), ("champion",), "torch")
    assert (hit.metrics, hit.created_at, hit.created_by) == ({"accuracy": 0.91}, whole.created_at, "ada")
    assert hit.tags["team"] == "vision"
    assert not hit.is_trashed


def test_a_version_is_found_by_the_digest_of_any_of_its_formats(shelf: Registry) -> None:
    version = shelf.resolve("digits/2")
    assert found(shelf, f"digest:{version.digest}") == ["digits/2"]
    assert found(shelf, f"digest:{version.digest[7:20]}") == ["digits/2"]
    same_bytes = found(shelf, f"digest:{version.formats['onnx'].digest}")
    assert set(same_bytes) == {"digits/1", "digits/2", "digits/3", "ranker/1"}


def test_evidence_that_is_attached_later_is_found_at_once_and_the_worst_of_the_same_rows_counts(
    shelf: Registry, formats: Formats
) -> None:
    shelf.attach("ranker", 1, [formats.metrics(accuracy=0.97)])
    assert found(shelf, "metric.accuracy:0.97") == []
    assert found(shelf, "metric.accuracy:0.5") == ["ranker/1"]
    shelf.attach("ranker", 1, [formats.metrics(accuracy=0.3, loss=0.1), formats.metrics(loss=0.2)])
    assert found(shelf, "metric.accuracy:0.3 metric.loss:0.2") == ["ranker/1"]


def test_a_page_is_sorted_by_the_value_that_a_gate_judges_and_a_hit_shows_it(
    settings: RegistrySettings, formats: Formats
) -> None:
    """What was measured on training rows, of another format or best of several is not what a version is ranked by."""
    other = "sha256:" + "5" * 64
    with Registry.open(settings, gates={"ranker": GateSettings(directions={"score": "lower"})}) as registry:
        for accuracy in (0.9, 0.8):
            registry.register(
                formats.draft(evidence=(formats.equivalence(), formats.metrics(accuracy=accuracy))), actor="a"
            )
        for fact in (
            formats.metrics(accuracy=0.99, split="train"),
            formats.metrics(accuracy=0.95, dataset=other),
            formats.metrics(accuracy=0.97, format_name="torch", dataset=other),
        ):
            registry.attach("digits", 2, [fact])
        hits = registry.search("sort:metric.accuracy").hits
        assert [(hit.reference, hit.metrics["accuracy"]) for hit in hits] == [("digits/1", 0.9), ("digits/2", 0.8)]
        (hit,) = registry.search("metric.accuracy>0.8 number:2").hits
        assert (hit.metrics["accuracy"], hit.measured_on["accuracy"]) == (0.95, f"onnx on test, {other}")

        registry.register(formats.draft(name="ranker"), actor="a")
        for score in (1.0, 3.0, 2.0):  # of the same rows: the gate says that less is better
            registry.attach("ranker", 1, [formats.metrics(score=score)])
            registry.attach("digits", 1, [formats.metrics(score=score)])
        hits = registry.search("sort:metric.score").hits
        assert [(hit.reference, hit.metrics["score"]) for hit in hits] == [("ranker/1", 3.0), ("digits/1", 1.0)]


def test_a_hit_shows_the_value_that_matched_and_where_it_was_measured(shelf: Registry, formats: Formats) -> None:
    other = "sha256:" + "5" * 64
    shelf.attach("ranker", 1, [formats.metrics(accuracy=0.999, dataset=other)])
    for query, value in (("metric.accuracy<0.95", 0.5), ("metric.accuracy>0.95", 0.999)):
        (hit,) = shelf.search(f"name:ranker {query}").hits
        assert hit.metrics["accuracy"] == value
        assert (other in hit.measured_on["accuracy"]) is (value == 0.999)
        assert hit.measured_on["accuracy"].startswith("onnx on test, sha256:")


def test_a_metric_that_is_no_number_is_not_found(shelf: Registry, formats: Formats) -> None:
    shelf.attach("ranker", 1, [formats.metrics(auc=float("nan"), loss=float("inf"))])
    assert found(shelf, "metric.auc:*") == found(shelf, "metric.loss:*") == []


def test_a_format_that_is_added_later_is_found(shelf: Registry, formats: Formats, tmp_path: Path) -> None:
    assert found(shelf, "format:jax") == []
    shelf.add_format("digits", 2, "jax", formats.torch, evidence=(), actor="ada")
    assert found(shelf, "format:jax") == ["digits/2"]


def test_what_was_not_registered_is_not_found(shelf: Registry, settings: RegistrySettings, formats: Formats) -> None:
    def stop(step: str) -> None:
        if step == "rows written":
            raise InterruptedError(step)

    with Registry.open(settings, checkpoint=stop) as other, pytest.raises(InterruptedError):
        other.register(formats.draft(tags={"team": "ghost"}), actor="ada")
    assert found(shelf, "tag.team=ghost") == []


def test_a_long_tag_is_found_by_its_whole_value_and_by_its_beginning(registry: Registry, formats: Formats) -> None:
    long, other = "a" * 3000, "a" * 2999 + "b"
    for value in (long, other):
        registry.register(formats.draft(tags={"note": value}), actor="ada")
    assert found(registry, f"tag.note={long}") == ["digits/1"]
    assert found(registry, f"tag.note={other}") == ["digits/2"]
    assert found(registry, f"tag.note={'a' * 100}*") == ["digits/2", "digits/1"]


def test_the_index_can_be_made_anew_from_the_records(shelf: Registry) -> None:
    queries = ("tag.team=vision", "metric.accuracy>0.9", "format:onnx", "dataset:sha256:dd", "by:ada", "commit:00")
    before = {query: found(shelf, query) for query in queries}
    database = shelf._database
    with database.write() as connection:
        connection.execute(text("DELETE FROM noa_version_labels"))
        connection.execute(text("DELETE FROM noa_version_metrics"))
    assert found(shelf, "tag.team=vision") == []
    with database.write() as connection:
        assert rebuild_index(connection) == 4
    assert {query: found(shelf, query) for query in queries} == before


@pytest.mark.parametrize(
    ("query", "column", "part"),
    [
        ("digits tagg.team=x", 8, "Did you mean `tag.`"),
        ("metrics.accuracy>1", 1, "Did you mean `metric.`"),
        ("aliass:champion", 1, "Did you mean `alias`"),
        ("is:trashd", 1, "Did you mean `is:trashed`"),
        ("digits  metric.accuracy>=high", 9, "a number"),
        ("metric>=0.5", 1, "`metric.NAME=VALUE`"),
        ("tag=vision", 1, "`tag.NAME=VALUE`"),
        ("name.x:digits", 1, "`name:VALUE`"),
        ("tag.team>vision", 1, "has no order"),
        ("tag.team!=vision", 1, "Write `-tag.team=vision`"),
        ("number:1.5", 1, "a whole number"),
        ("digest:xyz", 1, "hexadecimal"),
        ("created>yesterday", 1, "2026-01-31"),
        ("created=7d", 1, "`created<7d`"),
        ("created<99999999w", 1, "at most a century"),
        ("metric.accuracy>=", 1, "`metric>=VALUE`"),
        ('name:"digits', 1, "a quote is not closed"),
        ("a >=3", 3, "a term is not readable"),
        ("sort:accuracy", 1, "Did you mean `sort:metric.accuracy`"),
        ("sort:created sort:created", 14, "one `sort:`"),
        ("-sort:created", 1, "cannot be negated"),
        ("is:trashed -is:trashed", 12, "one of them"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused_with_column_and_remedy(query: str, column: int, part: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_query(query, now=NOW)
    assert caught.value.facts["column"] == column
    assert part in str(caught.value)


@given(strategies.text(alphabet='ab:=<>"-.*\\ !tagmetricnumber0123456789', max_size=40))
def test_any_text_is_a_query_or_is_refused_with_its_column(query: str) -> None:
    try:
        parse_query(query, now=NOW)
    except InvalidInputError as exc:
        assert 1 <= int(str(exc.facts["column"])) <= len(query)


def test_a_quoted_value_is_taken_as_it_is(registry: Registry, formats: Formats) -> None:
    registry.register(formats.draft(tags={"a": "x*", "q": 'say "hi" \\ o'}), actor="ada")
    registry.register(formats.draft(tags={"a": "xy"}), actor="ada")
    assert found(registry, 'tag.a="x*"') == ["digits/1"]
    assert found(registry, "tag.a=x*") == ["digits/2", "digits/1"]
    assert found(registry, r'tag.q="say \"hi\" \\ o"') == ["digits/1"]


def test_a_hostile_value_is_data_and_no_sql(shelf: Registry) -> None:
    for value in ("'; DROP TABLE noa_versions; --", "%", "_", "x' OR '1'='1"):
        assert found(shelf, f'tag.team="{value}"') == []
        assert found(shelf, f'"{value}"') == []
    assert len(found(shelf, "")) == 4


def test_pages_do_not_overlap_when_versions_are_registered_between_them(shelf: Registry, formats: Formats) -> None:
    first = shelf.search("digits", limit=2)
    shelf.register(formats.draft(), actor="ada")
    second = shelf.search("digits", limit=2, cursor=first.next_cursor)
    assert references(first.hits) + references(second.hits) == ["digits/3", "digits/2", "digits/1"]
    assert second.next_cursor is None


def test_a_cursor_of_another_query_or_nonsense_is_refused(shelf: Registry) -> None:
    cursor = shelf.search("digits", limit=1).next_cursor
    with pytest.raises(InvalidInputError, match="another query"):
        shelf.search("ranker", limit=1, cursor=cursor)
    for nonsense in ("", "x", "é", "W10", "eyJhIjoxfQ", "bnVsbA"):
        with pytest.raises(InvalidInputError, match="cursor is not readable"):
            shelf.search("digits", cursor=nonsense)


def test_a_page_of_no_or_too_many_rows_is_refused(shelf: Registry) -> None:
    for limit in (0, 1001):
        with pytest.raises(InvalidInputError, match="1 to 1000"):
            shelf.search("", limit=limit)
    with pytest.raises(InvalidInputError, match="at most 30 terms"):
        shelf.search("a " * 31)


def insert_made(registry: Registry, made: list[Made]) -> None:
    """Write random versions as rows; their files and records do not matter here."""
    with registry._database.write() as connection:
        sequence = 0
        for name in sorted({version.name for version in made}):
            moment = to_text(NOW)
            connection.execute(insert(models).values(name=name, next_number=99, created_at=moment, updated_at=moment))
        for v in made:
            here = {"name": v.name, "number": v.number}
            moment = to_text(v.created_at)
            connection.execute(
                insert(versions).values(
                    **here, uid=f"{v.name}-{v.number}", digest=v.digest, native="torch", signature="{}", wrapper="[]",
                    dataset_digest=v.dataset, git_commit=v.commit, environment="{}", params="{}", tags="{}",
                    description="", created_at=moment, created_by=v.created_by,
                )
            )  # fmt: skip
            for name, digest in v.formats.items():
                connection.execute(
                    insert(format_rows).values(
                        **here, format=name, uid=f"{v.name}-{v.number}", digest=digest, manifest="[]",
                        created_at=moment, created_by=v.created_by,
                    )
                )  # fmt: skip
            labels = [("dataset", v.dataset), ("by", v.created_by), ("native", "torch")]
            labels += [("commit", v.commit)] if v.commit else []
            labels += [("format", name) for name in v.formats] + [(f"tag.{k}", w) for k, w in v.tags.items()]
            for key, value in labels:
                connection.execute(insert(version_labels).values(**here, key=key, value=value, created_at=moment))
            for index, (metric, value, form, split) in enumerate(v.metrics):
                connection.execute(
                    insert(version_metrics).values(
                        **here, format=form, dataset_digest=f"{v.dataset[:-1]}{index}", split=split, metric=metric,
                        value=value, created_at=moment,
                    )
                )  # fmt: skip
            for alias in v.aliases:
                sequence += 1
                connection.execute(
                    insert(ledger).values(
                        sequence=sequence, name=v.name, alias=alias, action="promote", to_number=v.number,
                        to_digest=v.digest, actor="ada", reason="", verdict="{}", created_at=moment,
                        previous_hash="", hash=str(sequence),
                    )
                )  # fmt: skip
                connection.execute(insert(aliases).values(**here, alias=alias, digest=v.digest, sequence=sequence))
            if v.state is not None:
                connection.execute(
                    insert(trash).values(
                        **here, state=v.state, reason="", deleted_by="ada", deleted_at=moment, purge_after=moment
                    )
                )


def make_some(chance: random.Random) -> list[Made]:
    made: list[Made] = []
    for name in chance.sample(["digits", "dig", "Ranker", "r_1"], chance.randint(1, 4)):
        free = ["champion", "canary", "shadow"]
        for number in range(1, chance.randint(2, 8)):
            held = [free.pop()] if free and chance.random() < 0.3 else []
            made.append(
                Made(
                    name=name,
                    number=number,
                    digest=f"sha256:{chance.getrandbits(12):03x}{'0' * 61}",
                    formats={
                        f: f"sha256:{chance.getrandbits(12):03x}{'1' * 61}"
                        for f in chance.sample(["torch", "onnx", "onnx-int8"], chance.randint(1, 3))
                    },
                    dataset=f"sha256:{chance.choice('ab')}{chance.choice('ab')}{'2' * 62}",
                    # Few moments, so that many versions have the same.
                    created_at=NOW - timedelta(days=chance.randint(0, 4), microseconds=chance.randint(0, 1)),
                    created_by=chance.choice(["ada", "grace"]),
                    commit=chance.choice([None, "c0ffee", "c0de"]),
                    tags={"team": chance.choice(TEAMS)} if chance.random() < 0.8 else {},
                    metrics=[
                        (
                            chance.choice(METRICS),
                            chance.choice([0.0, 0.25, 0.5, 0.75, 1.0]),
                            chance.choice(["onnx", "torch", "onnx-int8"]),
                            chance.choice(["test", "test", "train"]),
                        )
                        for _ in range(chance.randint(0, 6))
                    ],
                    aliases=held,
                    state=None if held else chance.choice([None, None, None, "trashed", "purged"]),
                )
            )
    return made


def make_query(  # noqa: C901  # one case per kind of term
    chance: random.Random,
) -> tuple[list[tuple[str, Callable[[Made], bool]]], str, bool]:
    """Some terms with what each means in plain Python, the sort and whether the trash is meant."""
    compare: dict[str, Callable[[float, float], bool]] = {
        "=": lambda a, b: a == b,
        ":": lambda a, b: a == b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
    }

    def one() -> tuple[str, Callable[[Made], bool]]:  # noqa: C901
        op = chance.choice(list(compare))
        holds = compare[op]
        match chance.randrange(12):
            case 0:
                part = chance.choice(["dig", "R", "r_", "digits", "zz"])
                return part, lambda v: part.lower() in v.name.lower()
            case 1:
                name = chance.choice(["digits", "dig", "dig*", "*"])
                return f"name:{name}", lambda v: v.name.startswith(name[:-1]) if name.endswith("*") else v.name == name
            case 2:
                number = chance.randint(0, 5)
                return f"number{op}{number}", lambda v: holds(v.number, number)
            case 3:
                team = chance.choice(TEAMS)
                return f'tag.team="{team}"', lambda v: v.tags.get("team") == team
            case 4:
                begin = chance.choice(["", "v", "vi", "x"])
                return f"tag.team:{begin}*", lambda v: "team" in v.tags and v.tags["team"].startswith(begin)
            case 5:
                metric, value = chance.choice(METRICS), chance.choice([0.0, 0.25, 0.5, 0.9])
                return (
                    f"metric.{metric}{op}{value}",
                    lambda v: any(m == metric and holds(x, value) for m, x, *_ in v.metrics),
                )
            case 6:
                form = chance.choice(["onnx", "torch", "onnx*", "onnx-int8"])
                return f"format:{form}", lambda v: any(
                    f.startswith(form[:-1]) if form.endswith("*") else f == form for f in v.formats
                )
            case 7:
                digits = f"{chance.getrandbits(8):02x}"[: chance.randint(1, 2)]
                field = chance.choice(["digest", "dataset"])
                begin = f"sha256:{digits}"
                if field == "dataset":
                    return f"dataset:{digits}", lambda v: v.dataset.startswith(begin)
                return f"digest:{begin}", lambda v: any(d.startswith(begin) for d in (v.digest, *v.formats.values()))
            case 8:
                alias = chance.choice(["champion", "c*", "*", "shadow"])
                return f"alias:{alias}", lambda v: any(
                    a.startswith(alias[:-1]) if alias.endswith("*") else a == alias for a in v.aliases
                )
            case 9:
                days = chance.randint(0, 4)
                day = (NOW - timedelta(days=days)).date()
                return f"created{op}{day}", lambda v: holds(v.created_at.date().toordinal(), day.toordinal())
            case 10:
                commit = chance.choice(["c0", "c0ffee", "d"])
                return f"commit:{commit}", lambda v: v.commit is not None and v.commit.startswith(commit)
            case _:
                return "is:live", lambda v: bool(v.aliases)

    terms: list[tuple[str, Callable[[Made], bool]]] = []
    metrics_seen: set[str] = set()
    for _ in range(chance.randint(0, 4)):
        query, holds = one()
        head = query.split(".")[1][:4] if query.startswith("metric.") else ""
        if chance.random() < 0.3:
            terms.append((f"-{query}", lambda v, holds=holds: not holds(v)))
        elif not head or head not in metrics_seen:  # two terms about one metric have a test of their own
            metrics_seen |= {head} if head else set()
            terms.append((query, holds))
    sort = chance.choice(
        ["", "", "sort:created:asc", "sort:metric.accuracy", "sort:metric.loss:asc", "sort:metric.score"]
    )
    return terms, sort, chance.random() < 0.2


def brute_force(
    made: list[Made], terms: list[tuple[str, Callable[[Made], bool]]], sort: str, trashed: bool
) -> list[str]:
    wanted = [
        v
        for v in made
        if (v.state == "trashed" if trashed else v.state is None) and all(holds(v) for _, holds in terms)
    ]
    if not sort.startswith("sort:metric"):
        wanted.sort(key=lambda v: (v.created_at, v.name, v.number), reverse=sort != "sort:created:asc")
        return [f"{v.name}/{v.number}" for v in wanted]
    metric, ascending = sort.split(".")[1].removesuffix(":asc"), sort.endswith(":asc")
    rows = [(value, v.name, v.number) for v in wanted if (value := counted(v, metric, terms)) is not None]
    return [f"{name}/{number}" for _, name, number in sorted(rows, reverse=not ascending)]


def counted(version: Made, metric: str, terms: list[tuple[str, Callable[[Made], bool]]]) -> float | None:
    """The value by which a gate would judge, of those within the bounds of the query."""
    bounds = [holds for query, holds in terms if query.startswith(f"metric.{metric}")]
    left = [row for row in version.metrics if row[0] == metric]
    left = [row for row in left if all(holds(replace(version, metrics=[row])) for holds in bounds)]
    for is_best in (
        lambda row: row[3] == "test",
        lambda row: row[2] == "onnx",
        lambda row: row[2] == "torch",  # the native one
    ):
        left = [row for row in left if is_best(row)] or left
    values = [row[1] for row in left]
    directions: dict[str, str] = {"accuracy": "higher", "loss": "lower"}
    if version.name in GATES:
        directions |= GATES[version.name].directions
    match directions.get(metric):
        case "higher":
            return min(values, default=None)
        case "lower":
            return max(values, default=None)
        case _:
            return values[0] if values else None


@pytest.mark.parametrize("most", [planning._MOST_DRIVEN, 0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_search_equals_a_filter_over_all_versions(
    settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch, seed: int, most: int
) -> None:
    """Whatever the planner walks along, the answer is the same: its limits are moved so that each way is taken."""
    with Registry.open(settings, gates=GATES) as registry:
        _search_all(registry, monkeypatch, seed, most)


def _search_all(registry: Registry, monkeypatch: pytest.MonkeyPatch, seed: int, most: int) -> None:
    monkeypatch.setattr(planning, "_MOST_DRIVEN", most)
    monkeypatch.setattr(planning, "_MOST_DIGESTS", most)
    monkeypatch.setattr(planning, "_MOST_SORTED", most)
    monkeypatch.setattr(planning, "_MOST_NAMES", most)
    chance = random.Random(seed)
    made = make_some(chance)
    insert_made(registry, made)
    for _ in range(40):
        terms, sort, trashed = make_query(chance)
        words = [query for query, _ in terms] + ([sort] if sort else []) + (["is:trashed"] if trashed else [])
        chance.shuffle(words)
        query = " ".join(words)
        answer = found(registry, query, page=chance.choice([1, 2, 3, 50]))
        assert answer == brute_force(made, terms, sort, trashed), query
        if sort.startswith("sort:metric"):
            metric = sort.split(".")[1].removesuffix(":asc")
            shown = [(hit.reference, hit.metrics[metric]) for hit in registry.search(query, limit=50).hits]
            by_name = {f"{v.name}/{v.number}": counted(v, metric, terms) for v in made}
            assert shown == [(reference, by_name[reference]) for reference in answer], query
