"""What `noa endpoints` shows of arms."""

from __future__ import annotations

import pytest

from noa_cli.commands import endpoints
from noa_serving.live import LiveArm, LiveEndpoint

ARMS = (
    LiveArm(name="main", model="digits@champion", state="ready", mode="answer", takes=True, share=0.9, version=3),
    LiveArm(
        name="candidate",
        model="digits@candidate",
        state="ready",
        mode="answer",
        takes=True,
        share=0.1,
        version=4,
        requests_per_s=12.0,
    ),
    LiveArm(
        name="odd",
        model="digits@odd",
        state="waiting",
        mode="shadow",
        takes=False,
        share=1.0,
        rests_because="`digits@odd` points to no version yet",
    ),
    LiveArm(name="fallback", model="small@champion", state="ready", mode="fallback", takes=True, version=1),
)
ROW = LiveEndpoint(
    name="digits", model="digits@champion", state="ready", address="http://127.0.0.1:1", pid=7, version=3, arms=ARMS
)


def test_each_arm_has_a_row_below_its_endpoint() -> None:
    rows = [[str(cell) for cell in row[:5]] for row in endpoints._cells(ROW)]
    assert [row[0] for row in rows] == [
        "digits",
        "  main 90%",
        "  candidate 10%",
        "  odd 100% shadow",
        "  fallback",
    ]
    assert [row[4] for row in rows] == ["ready", "takes requests", "takes requests", "waiting", "ready"]
    assert endpoints.problems_of([ROW]) == ["digits: arm odd takes no requests: `digits@odd` points to no version yet"]


def test_a_pipe_gets_a_line_for_each_arm(capfd: pytest.CaptureFixture[str]) -> None:
    endpoints._print_lines([ROW])
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "digits  arm candidate 10%  takes requests  4" in lines[2]
    assert "12 requests/s" in lines[2]
