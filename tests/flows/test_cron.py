"""Cron expressions are checked without a server, and never more strictly than Prefect checks them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from flows_helpers import make_project
from hypothesis import assume, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from noa.errors import InvalidInputError
from noa_flows import schedule
from noa_flows._cron import check_cron

NUMBERS = st.integers(0, 65).map(str)
WORDS = st.sampled_from(["mon", "SUN", "jan", "Dec", "foo", ""])
VALUES = NUMBERS | WORDS
STEPS = st.integers(0, 70).map(lambda step: f"/{step}") | st.just("")
PLAIN = (
    st.builds("*{}".format, STEPS)
    | st.builds("{}{}".format, VALUES, STEPS)
    | st.builds("{}-{}{}".format, VALUES, VALUES, STEPS)
)
SPECIAL = st.sampled_from(["?", "L", "l5", "mon#2", "5#3", "1-L", "5#9", "*?"])


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))  # else its import makes ~/.prefect
        yield


def expressions(items: st.SearchStrategy[str], fields: st.SearchStrategy[int]) -> st.SearchStrategy[str]:
    field = st.just("*") | st.lists(items, min_size=1, max_size=3).map(",".join)
    return fields.flatmap(lambda count: st.lists(field, min_size=count, max_size=count)).map(" ".join)


def accepts(cron: str) -> bool:
    try:
        check_cron(cron)
    except InvalidInputError:
        return False
    return True


def prefect_accepts(cron: str) -> bool:
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError:
        return False
    return True


def has_day_or_month_0(cron: str) -> bool:
    return "0" in re.split("[,/ -]", " ".join(cron.split()[2:4]))


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_home")
@examples(deadline=None)  # the first call imports Prefect
@given(expressions(PLAIN, st.just(5)))
@example("0 3 * * *")
@example("*/30 8-18 1,15 jan-mar mon-fri")
@example("0 0 * * 5-7")
@example("0 22-2 * * *")
def test_plain_expressions_are_judged_as_by_prefect(cron: str) -> None:
    assume(not has_day_or_month_0(cron))
    assert accepts(cron) == prefect_accepts(cron)


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_home")
@examples(deadline=None)
@given(expressions(PLAIN | SPECIAL, st.integers(4, 6)))
@example("0 0 L * *")
@example("0 0 * * mon#2")
@example("0 0 1 * * 30")
def test_what_prefect_accepts_is_not_refused(cron: str) -> None:
    assume(not has_day_or_month_0(cron))
    assert accepts(cron) or not prefect_accepts(cron)


@pytest.mark.parametrize(
    ("cron", "where", "received"),
    [
        ("61 3 * * *", "its minute", "`61`"),
        ("0 25 * * *", "its hour", "`25`"),
        ("0 3 0 * *", "its day", "`0`"),
        ("0 3 1,32 * *", "its day", "`32`"),
        ("0 3 * mon *", "its month", "`mon`"),
        ("0 3 * * someday", "its weekday", "`someday`"),
        ("*/0 3 * * *", "its minute", "`*/0`"),
        ("bad", "its fields", "1"),
        ("", "its fields", "0"),
        ("0 3 * * * * *", "its fields", "7"),
    ],
)
def test_an_error_names_the_field_what_it_may_be_and_an_example(cron: str, where: str, received: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_cron(cron)
    assert caught.value.what == f"`{cron}` is no cron expression"
    assert (caught.value.where, caught.value.received) == (where, received)
    assert caught.value.expected
    assert "`0 3 * * *`" in str(caught.value.remedy)


def test_spaces_do_not_count() -> None:
    assert check_cron("  0 3\t* *  MON ") == "0 3 * * MON"


def test_a_bad_expression_is_told_before_that_no_server_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = make_project(tmp_path_factory.mktemp("idle"))
    with pytest.raises(InvalidInputError, match=r"`0 25 \* \* \*` is no cron expression \(its hour\)"):
        schedule(settings, "tiny", "0 25 * * *")
