"""Open the project's runs, and tell of a job whose process is gone that it was interrupted, whatever is recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from noa_cli._invocation import current

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_registry.runs import RunBook


@contextmanager
def open_project_runs() -> Generator[RunBook]:
    """Open the runs of the project and close them after the command; where there are none yet, nothing is made."""
    from noa_registry.runs import open_runs

    settings = current().settings()
    with open_runs(settings.registry, is_gone=_process_check(settings)) as book:
        yield book


def _process_check(settings: Settings) -> Callable[[str, int], bool]:
    """Return what tells of a job of this machine whether its process is gone; of others nothing is known."""
    jobs = settings.training.jobs_dir

    def is_gone(job: str, attempt: int) -> bool:
        from noa.errors import NotFoundError
        from noa_training.job_folder import attempt_folder, read_state

        if "/" in job or job in (".", ".."):  # anybody can write a tag
            return False
        try:
            return read_state(attempt_folder(jobs / job, attempt)).state != "running"
        except NotFoundError:
            return False

    return is_gone
