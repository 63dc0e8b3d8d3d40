"""Cron expressions, judged by Prefect's own class: a mistake is named also while no server runs."""

from __future__ import annotations

import os
from pathlib import Path

from noa.errors import DependencyMissingError, InvalidInputError


def check_cron(text: str, *, prefect_home: Path) -> str:
    """Return a cron expression with single spaces. Importing Prefect takes about a second.

    Raises:
        InvalidInputError: Prefect would refuse it.
        DependencyMissingError: Prefect is not installed.
    """
    os.environ.setdefault("PREFECT_HOME", str(prefect_home))  # else the import makes ~/.prefect
    try:
        from prefect.client.schemas.schedules import CronSchedule
    except ModuleNotFoundError as exc:
        raise DependencyMissingError("prefect", extra="flows", purpose="Scheduling") from exc
    cron = " ".join(text.split())
    try:
        CronSchedule(cron=cron)
    except ValueError as exc:
        raise InvalidInputError(
            f"`{cron}` is no cron expression",
            where="--cron",
            expected="minute hour day month weekday, e.g. `0 3 * * *` for every day at three",
            received=f"`{cron}`",
            remedy="Write e.g. `0 6 * * mon` for every Monday at six",
        ) from exc
    return cron
