"""A process of its own for the registry's tests: `python registry_child.py COMMAND JSON`.

Prints one line of JSON: what it did, or the error it got.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

from noa.errors import NoaError
from noa.settings import RegistrySettings
from noa_registry import Registry, VersionDraft


def main(command: str, request: dict[str, object]) -> dict[str, object]:
    settings = RegistrySettings.model_validate_json(json.dumps(request["settings"]))
    if "max_file_bytes" in request:
        limit = int(str(request["max_file_bytes"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with Registry.open(settings, checkpoint=_kill_at(request.get("kill_at"))) as registry:
        match command:
            case "open":
                return {"models": len(registry.models())}
            case "register":
                return {"number": registry.register(_draft(request), actor="child").number}
            case "register_forever":
                while True:
                    registry.register(_draft(request), actor="child")
            case "add_format":
                folder = Path(str(request["folder"]))
                added = registry.add_format("digits", 1, "onnx", folder, evidence=[], actor="child")
                return {"formats": sorted(added.formats)}
            case _:
                raise ValueError(command)


def _draft(request: dict[str, object]) -> VersionDraft:
    import numpy as np

    folder = Path(str(request["formats"]))
    return VersionDraft(
        name="digits",
        formats={name: folder / name for name in ("torch", "onnx")},
        native="torch",
        input_example={"x": np.ones((2, 4), np.float32)},
        dataset_digest="sha256:" + "d" * 64,
    )


def _kill_at(wanted: object):  # noqa: ANN202  # a Checkpoint
    def checkpoint(step: str) -> None:
        if step == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))), flush=True)
    except NoaError as exc:
        print(json.dumps({**exc.to_dict(), "holder": exc.facts.get("holder")}), flush=True)
        sys.exit(3)
