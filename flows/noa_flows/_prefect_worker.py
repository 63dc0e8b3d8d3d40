"""The worker process: it takes due runs of the project's work pool and starts each as a process under a warden.

    python -m noa_flows._prefect_worker --pool noa --folder PROJECT --limit 1 --api URL

It is Prefect's stock process worker. Three things are ours: each run's command goes through the warden with this
process as its parent, so that a worker killed with -9 leaves no run behind; before the first poll, runs that the server
believes to be running (their worker is gone, and so are they) are marked crashed; and what a schedule makes while a run
of its recipe is under way is skipped (`_late_runs.py`). Started by `noa up`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import threading
import time
from datetime import UTC, datetime
from typing import cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from noa.errors import NoaError
from noa_flows._environment import WORKER_PID_VARIABLE
from noa_flows._late_runs import skip_late_runs
from noa_flows._prefect_api import PrefectApi
from noa_flows._service_plans import WORKER_NAME
from noa_flows.supervisor import warden_command

_GRACE_S = 10.0
_SKIP_EVERY_S = 5.0


def main() -> None:
    """Serve the pool until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--api", required=True)
    options = parser.parse_args()
    os.environ[WORKER_PID_VARIABLE] = str(os.getpid())  # a run's warden compares it with its parent
    api = PrefectApi(url=options.api)
    bury_lost_runs(api, options.pool)
    threading.Thread(target=_skip_for_ever, args=(api, options.pool), name="skip-late-runs", daemon=True).start()
    asyncio.run(_work(options.pool, folder=options.folder, limit=options.limit))


def bury_lost_runs(api: PrefectApi, pool: str) -> None:
    """Give every run that has no process any more its final state, which also frees its concurrency slot."""
    for run in api.started_runs(pool):
        if run.get("state_type") == "CANCELLING":
            api.set_state(str(run["id"]), "CANCELLED", "The run was ended together with its worker.", force=True)
        else:
            reason = "The worker was stopped or killed while this run was under way; all its processes are gone."
            api.set_state(str(run["id"]), "CRASHED", reason, force=True)


def _skip_for_ever(api: PrefectApi, pool: str) -> None:
    while True:
        try:
            skip_late_runs(api, pool, now=datetime.now(UTC))
        except NoaError as exc:  # the server is busy or ends; the next look finds the same runs
            print(f"late runs are not skipped now: {exc}", file=sys.stderr, flush=True)
        time.sleep(_SKIP_EVERY_S)


async def _work(pool: str, *, folder: str, limit: int) -> None:
    await _prepare_pool(pool, folder)
    worker = ProcessWorker(work_pool_name=pool, name=WORKER_NAME, limit=limit, create_pool_if_not_found=False)
    await worker.start()


async def _prepare_pool(pool: str, folder: str) -> None:
    """Create the pool, or bring its defaults up to date: this interpreter, this folder."""
    template = ProcessWorker.get_default_base_job_template()
    variables = cast("dict[str, dict[str, dict[str, object]]]", template["variables"])["properties"]
    engine = [sys.executable, "-P", "-m", "prefect.engine"]
    command = warden_command(engine, parent=f"env:{WORKER_PID_VARIABLE}", grace_s=_GRACE_S)
    variables["command"]["default"] = shlex.join(command)
    variables["working_dir"]["default"] = folder
    async with get_client() as client:
        try:
            await client.read_work_pool(pool)
        except ObjectNotFound:
            await client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
        else:
            await client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))


if __name__ == "__main__":
    main()
