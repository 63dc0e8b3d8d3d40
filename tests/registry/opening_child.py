"""Opens registries in processes of their own: `python opening_child.py` takes lines of JSON and answers each with one.

A server for one test run. Everything is imported once, MLflow too, and nothing is open here: each process that opens is
a fork, and all of one order begin at the same instant.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.mlflow_schema import import_mlflow


def main() -> None:
    import_mlflow()
    gc.freeze()  # a fork that collects garbage would copy every page
    for line in sys.stdin:
        order = json.loads(line)
        settings = RegistrySettings.model_validate(order["settings"])
        print(json.dumps(open_at_once(settings, order["processes"], order["killed_in"])), flush=True)


def open_at_once(settings: RegistrySettings, processes: int, killed_in: str | None) -> list[dict[str, Any]]:
    """Open a registry in many processes; returns how each ended, negative for a signal, and what it said."""
    start_read, start_write = os.pipe()
    children: list[tuple[int, int]] = []
    for _ in range(processes):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(start_write)
            os.close(reading)
            os.read(start_read, 1)
            open_and_end(settings, killed_in, writing)
        os.close(writing)
        children.append((child, reading))
    os.close(start_read)
    os.close(start_write)  # the starting gun: every child's read returns
    answers: list[dict[str, Any]] = []
    for child, reading in children:
        with os.fdopen(reading) as told:
            said = told.read()
        answers.append({"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "said": said})
    return answers


def open_and_end(settings: RegistrySettings, killed_in: str | None, writing: int) -> None:
    """Open the registry and say how many models it has, and end this process."""
    code = 1
    try:
        if killed_in is not None:
            die_after(killed_in)
        with Registry.open(settings) as registry:
            os.write(writing, str(len(registry.models())).encode())
        code = 0
    except BaseException:  # noqa: BLE001  # the end of this process, whatever it is
        os.write(writing, traceback.format_exc()[-4000:].encode())
    finally:
        os._exit(code)


def die_after(place: str) -> None:
    """Let the function at `place`, a module of the registry and a name, do its work and kill the process then."""
    module, _, name = place.partition(".")
    found = importlib.import_module(f"noa_registry.{module}")
    work = getattr(found, name)
    setattr(found, name, lambda *args, **more: (work(*args, **more), os.kill(os.getpid(), signal.SIGKILL)))


if __name__ == "__main__":
    main()
