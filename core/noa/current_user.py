"""Who runs this process, as the operating system says: no variable of the environment counts."""

from __future__ import annotations

import os
import pwd


def current_user() -> str:
    """Return the name of the user whose rights this process has, `uid-1000` where the system knows no name."""
    user = os.geteuid()
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # as in many containers
        return f"uid-{user}"
