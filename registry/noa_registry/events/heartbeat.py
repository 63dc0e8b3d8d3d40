"""Where the deliverer's sign of life is; light, for it is asked by `noa status`."""

from __future__ import annotations

from pathlib import Path

WEBHOOKS_FOLDER = "webhooks"


def heartbeat_file(state_dir: Path) -> Path:
    """Return the file whose age tells whether a deliverer is at work."""
    return state_dir / WEBHOOKS_FOLDER / "heartbeat"
