"""The border around every call into a recipe: what it does to its process must not reach what noa does there next."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def user_code() -> Generator[None]:
    """Run the user's code; afterwards the umask is what it was, and the standard streams are open.

    Should it fork and come back twice, the copy ends here: one process goes on with the job.
    """
    process, mask = os.getpid(), os.umask(0o077)
    os.umask(mask)
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(0)
        os.umask(mask)
        _reopen_streams()


def _reopen_streams() -> None:
    """Keep 0, 1 and 2 from being given to the next file that is opened, which would then hold what is printed."""
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
