"""The Prefect server process: the application of `prefect server start`, without the command line's process before it.

    python -m noa_flows._prefect_server --host 127.0.0.1 --port 4200

With SQLAlchemy 2.1 the scheduler of Prefect 3.8 makes no runs: it inserts them in bulk with a key `state` that is no
column but a hybrid, which 2.0 left out and 2.1 refuses ("please supply a bulk_dml decorated function"). We supply that
function. It can go when Prefect supports SQLAlchemy 2.1; `test_schedules` fails without it.
"""

from __future__ import annotations

import argparse
from collections.abc import MutableMapping
from typing import Any, cast

import uvicorn
from prefect.server.database.orm_models import FlowRun
from sqlalchemy import inspect


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    _let_bulk_inserts_leave_out_the_state()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host=options.host,
        port=options.port,
        lifespan="on",
        log_level="warning",
        timeout_keep_alive=5,
    )


def _let_bulk_inserts_leave_out_the_state() -> None:
    state = cast("Any", inspect(FlowRun).all_orm_descriptors["state"])
    if hasattr(state.inplace, "bulk_dml"):  # SQLAlchemy 2.1 and newer
        state.inplace.bulk_dml(_leave_out)


def _leave_out(cls: type[FlowRun], mapping: MutableMapping[str, Any], value: object) -> None:
    """Drop the state from the row: the server inserts it into its own table right after."""
    del cls, value
    mapping.pop("state", None)


if __name__ == "__main__":
    main()
