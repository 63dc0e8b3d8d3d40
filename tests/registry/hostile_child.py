"""Tries to import every file of the corpus, each in a process of its own, and says what happened.

    python hostile_child.py FOLDER DATABASE     one line of JSON per file

Each process inherits the imports of this one, and what SQLAlchemy compiles at a first opening, so that a hundred of
them take seconds.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import ModuleType


def load_corpus() -> ModuleType:
    path = Path(__file__).with_name("hostile_corpus.py")
    spec = importlib.util.spec_from_file_location("hostile_corpus", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile_corpus"] = module
    spec.loader.exec_module(module)
    return module


def attempt(path: Path, database: str, artifacts: Path, allow: str | None) -> dict[str, object]:
    """Import in this process, and tell how it went."""
    from noa.errors import InvalidInputError
    from noa.settings import RegistrySettings
    from noa_conversion.imports import import_model
    from noa_registry import Registry

    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    started = time.monotonic()
    with Registry.open(RegistrySettings(database_url=database, artifact_dir=artifacts)) as registry:
        try:
            import_model(registry, path, name="evil", actor="eve", allow_pickle=allow)
            outcome, text = "accepted", ""
        except InvalidInputError as exc:
            outcome, text = "refused", str(exc)
        except BaseException as exc:  # noqa: BLE001  # any other end is a finding of the test
            outcome, text = type(exc).__name__, repr(exc)
        models = [model.name for model in registry.models()]
    return {
        "outcome": outcome,
        "text": text,
        "models": models,
        "seconds": time.monotonic() - started,
        "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def in_child(path: Path, database: str, artifacts: Path, allow: str | None) -> dict[str, object]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        result = attempt(path, database, artifacts, allow)
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"outcome": f"died with {status}", "text": "", "models": []}


def main() -> int:
    root, database = Path(sys.argv[1]), sys.argv[2]
    corpus = load_corpus()
    import picklescan.scanner

    import noa_conversion.imports
    from noa.settings import RegistrySettings
    from noa_registry import Registry

    del picklescan, noa_conversion
    with Registry.open(RegistrySettings(database_url=database, artifact_dir=root / "artifacts")) as registry:
        registry.models()
    gc.freeze()  # a fork that collects garbage would copy every page
    for severity, builders in (("hostile", corpus.HOSTILE), ("code", corpus.CODE)):
        for index, (name, build) in enumerate(builders.items()):
            place = root / severity / str(index) / "in"
            place.mkdir(parents=True)
            canary = root / "canary"
            path = build(place, canary)
            for allow in ("evil",) if severity == "hostile" else (None, "other"):
                result = in_child(path, database, root / "artifacts", allow)
                print(
                    json.dumps(
                        {"name": name, "severity": severity, "allow": allow, "canary": canary.exists(), **result}
                    ),
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
