"""Why a database cannot be upgraded: the row that stopped it, found after the database refused a step.

What hinders nothing is no reason: such a database is upgraded, and the verification names what is spoilt in it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, exc

from noa.errors import IntegrityError
from noa_registry.foreign_cells import MISREAD, blame

_REMEDY: Final = "Somebody wrote into the database directly; restore a backup of it and run the same command again"


@contextmanager
def named_hindrance(connection: Connection) -> Generator[None, None, None]:
    """Give a block that upgrades; what the database refuses in it is an error that names the row.

    Raises:
        IntegrityError: a row was changed by hand so that the upgrade cannot follow it.
    """
    try:
        yield
    except IntegrityError as error:
        cell = blame(connection)  # a row that is sought by a spoilt cell is not found: the cell is the reason
        is_reason = cell is not None and cell.facts.get("file") == error.facts.get("file")
        raise _refused(cell if cell is not None and is_reason else error) from error
    except (exc.IntegrityError, exc.DataError, *MISREAD) as error:
        if connection.dialect.name != "sqlite":  # PostgreSQL keeps to its types, and reads nothing after an error
            raise
        cell = blame(connection)
        if cell is None:
            raise
        raise _refused(cell) from error


def _refused(problem: IntegrityError) -> IntegrityError:
    return IntegrityError(
        f"the database cannot be upgraded: {problem.what}",
        where=problem.where,
        expected=problem.expected,
        received=problem.received,
        remedy=_REMEDY,
        **problem.facts,
    )
