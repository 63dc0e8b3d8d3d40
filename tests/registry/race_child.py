"""Many processes that promote at the same instant: `python race_child.py JSON`, a line of JSON per racer comes back.

The libraries are imported once, then every racer is a fork with a registry and a connection of its own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from noa.errors import NoaError
from noa.settings import GateSettings, RegistrySettings
from noa_registry import Registry


def main(request: dict[str, Any]) -> None:
    with Registry.open(_settings(request)) as registry:
        registry.find_store_problems()  # asks S3, where the files are there: every racer has what boto reads for that
    start_read, start_write = os.pipe()
    ready_read, ready_write = os.pipe()
    answers_read, answers_write = os.pipe()
    children: list[int] = []
    for number in request["numbers"]:
        child = os.fork()
        if child == 0:
            os.close(start_write)
            code = 1
            try:
                answer = race(request, number, start_read, ready_write)
                os.write(answers_write, json.dumps(answer).encode() + b"\n")  # short: written whole
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(answers_write)
    waiting = len(children)
    while waiting:
        waiting -= len(os.read(ready_read, waiting))
    os.close(start_write)  # the starting gun: every racer's read returns
    with os.fdopen(answers_read) as answers:
        sys.stdout.write(answers.read())
    for child in children:
        os.waitpid(child, 0)


def race(request: dict[str, Any], number: int, start: int, ready: int) -> dict[str, Any]:
    gates = {name: GateSettings.model_validate(table) for name, table in request.get("gates", {}).items()}
    with Registry.open(_settings(request), gates=gates) as registry:
        registry.resolve(f"digits/{number}")
        os.write(ready, b".")
        os.read(start, 1)
        actor = f"racer {os.getpid()}"
        try:
            entry = registry.promote(
                "digits", number, reason=f"race of {number}", actor=actor, expect=request["expect"]
            )
        except NoaError as exc:
            return {"number": number, **exc.to_dict(), "holder": exc.facts.get("holder")}
        return {"number": number, "to": entry.to_number, "sequence": entry.sequence, "actor": actor}


def _settings(request: dict[str, Any]) -> RegistrySettings:
    return RegistrySettings.model_validate_json(json.dumps(request["settings"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
