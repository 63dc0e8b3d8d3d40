"""The process that delivers events to webhooks: `python -m noa_flows._webhook_deliverer --folder PROJECT`.

Started by `noa up` when a webhook is configured. The webhooks, secrets included, come in an environment variable that
only this user's processes can read; the other settings are those of the project, as for a flow.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import cast

from noa.errors import NoaError
from noa.settings import Settings, WebhookSettings
from noa.stop_signals import stop_on_signals
from noa_flows._environment import SETTINGS_VARIABLE, carried_settings
from noa_registry import Registry

WEBHOOKS_VARIABLE = "NOA_WEBHOOKS"


def webhooks_to_carry(settings: Settings) -> str:
    """Return the value of NOA_WEBHOOKS."""
    tables = {
        name: {**hook.model_dump(mode="json"), "secret": hook.secret.get_secret_value()}
        for name, hook in settings.webhooks.items()
    }
    return json.dumps(tables)


def main() -> int:
    """Deliver until stopped by a signal; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, type=Path)
    folder: Path = parser.parse_args().folder
    settings = carried_settings(folder, os.environ.pop(SETTINGS_VARIABLE, None))
    tables = cast("dict[str, object]", json.loads(os.environ.pop(WEBHOOKS_VARIABLE, "{}")))
    webhooks = {name: WebhookSettings.model_validate(table) for name, table in tables.items()}
    try:
        with stop_on_signals() as stop, Registry.open(settings.registry) as registry:
            registry.events.deliver(webhooks, state_dir=settings.state_dir, stop=stop, tell=_tell)
    except NoaError as exc:
        _tell(str(exc))
        return 1
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
