"""Runs commands of noa and scripts, each in a fork of this process: `python warm_runner.py`; see `warm_client.py`.

It takes lines of JSON and answers each with the exit code. The packages that a fork has imported, and what of noa, this
process imports too, so that the next fork finds them: the start of Python and its imports are most of a short command.
What computes with a framework imports that itself.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

# A fork has not the threads with which these compute, and waits for them: what imports one is not imported here.
_THREADED = ("torch", "jax", "onnxruntime")
# Where modules are that all projects share: a user's own may change between two commands.
_SHARED = (str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix).resolve()))


def main() -> None:
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in orders:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            orders.close()
            answers.close()
            perform(order, writing)  # leaves as a process of its own would, with all that is done at exit
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        for name in json.loads(told) if told else ():
            if name not in sys.modules:
                with suppress(Exception):  # the next command says itself what is wrong with it
                    importlib.import_module(name)
        gc.freeze()  # a fork that collects garbage would copy every page
        answers.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")
        answers.flush()


def perform(order: dict[str, Any], told: int) -> None:
    """Become the process that was ordered, and end as it does."""
    for stream, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        file = os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[0] = ""
    try:
        if "script" in order:
            sys.argv = ["-c"]
            warnings.resetwarnings()
            warnings.simplefilter(order["warnings"])
            exec(compile(order["script"], "<string>", "exec"), {"__name__": "__main__"})
            sys.exit(0)
        from noa_cli.__main__ import main as noa

        sys.argv = ["noa", *order["arguments"]]
        noa()
    finally:
        os.write(told, json.dumps(imported()).encode())
        os.close(told)


def imported() -> list[str]:
    """Return the installed packages and the modules of noa that this process has, in the order in which they came."""
    found: list[str] = []
    if any(name in sys.modules for name in _THREADED):
        return found
    for name, module in list(sys.modules.items()):
        is_package = "." not in name and str(getattr(module, "__file__", None)).startswith(_SHARED)
        if is_package or name.startswith("noa"):
            found.append(name)
    return found


if __name__ == "__main__":
    main()
