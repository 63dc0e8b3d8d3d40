"""A process of its own for the tests of deleting and collecting: `python retention_child.py COMMAND JSON`.

Prints one line of JSON. `kill_at`: the step at which it kills itself; `kill_at_removal`: the how-manyth file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta

from noa.errors import NoaError
from noa.settings import RegistrySettings
from noa_registry import Registry


def main(command: str, request: dict[str, object]) -> dict[str, object]:
    settings = RegistrySettings.model_validate_json(json.dumps(request["settings"]))
    with Registry.open(settings, checkpoint=_kill_at(request.get("kill_at"))) as registry:
        number = int(str(request.get("number", 0)))
        match command:
            case "gc":
                plan = registry.retention.plan_gc(orphan_age=timedelta(0), unknown=True)
                _kill_at_removal(int(str(request.get("kill_at_removal", 0))))
                _wait_for_the_gun(request)
                report = registry.retention.apply(plan, actor="ada")
                return {"removed": [item.key for item in report.removed], "skipped": [s.reason for s in report.skipped]}
            case "delete":
                _wait_for_the_gun(request)
                registry.retention.delete("digits", number, reason="race", actor="deleter")
                return {"deleted": number}
            case "promote":
                _wait_for_the_gun(request)
                registry.promote("digits", number, reason="race", actor="promoter")
                return {"promoted": number}
            case _:
                raise ValueError(command)


def _wait_for_the_gun(request: dict[str, object]) -> None:
    if request.get("race"):
        print("ready", flush=True)
        sys.stdin.readline()


def _kill_at(wanted: object):  # noqa: ANN202  # a Checkpoint
    def checkpoint(step: str) -> None:
        if step == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


def _kill_at_removal(count: int) -> None:
    """Kill this process when it is about to remove its `count`-th file or folder; 0: never."""
    left = [count]

    def hook(event: str, _arguments: tuple[object, ...]) -> None:
        if event in ("os.remove", "os.rmdir") and count:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))), flush=True)
    except NoaError as exc:
        print(json.dumps(exc.to_dict()), flush=True)
        sys.exit(3)
