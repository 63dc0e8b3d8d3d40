"""The files by which BentoML knows a packaged endpoint: `bentofile.yaml`, `service.py` and the settings that go along.

Nothing in them is a secret or a path of the machine where it was packed: keys and certificates are named in the
environment of the server that runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from noa.settings import CacheSettings, ServingSettings, StopSettings, StreamSettings

if TYPE_CHECKING:
    from noa_serving.packaging.packed_model import PackedVersion

PORT: Final = 3000
WHEELS_FOLDER: Final = "wheels"
_LEFT_OUT: Final = frozenset({
    "host", "port", "api_keys", "client_key", "shared_memory", "poll_interval_s", "swap_timeout_s", "lease_s",
    "trace_endpoint", "payload_log", "code",
})  # fmt: skip


def service_module(version: PackedVersion, digest: str) -> str:
    """Return `service.py`; `digest` is that of `packed.json`."""
    return (
        f'"""Serves `{version.reference}` ({version.digest}) as `{version.format.name}`: `bentoml serve .`."""\n\n'
        "from noa_serving.packaging.bento_packed import packed_service\n\n"
        f'SERVICE = packed_service(__file__, digest="{digest}")\n'
    )


def bentofile(endpoint: str, version: PackedVersion) -> str:
    """Return `bentofile.yaml`."""
    table = {
        "service": "service:SERVICE",
        "name": f"noa-{endpoint}",
        "labels": {"model": version.name, "version": str(version.number), "format": version.format.name},
        "include": ["service.py", "noa.toml", "requirements.txt", "model/", f"{WHEELS_FOLDER}/"],
        "envs": [
            {"name": "BENTOML_HOST", "value": "0.0.0.0"},  # of an image; on a machine the command line says
            {"name": "BENTOML_DO_NOT_TRACK", "value": "True"},
        ],
    }
    return yaml.safe_dump(table, sort_keys=False)


def project_file(
    endpoint: str,
    version: PackedVersion,
    serving: ServingSettings,
    cache: CacheSettings | None = None,
    stream: StreamSettings | None = None,
) -> str:
    """Return `noa.toml`: the endpoint, pinned, and what its server does differently from the defaults."""
    lines = ["[serving]"]
    for name, field in ServingSettings.model_fields.items():
        value = getattr(serving, name)
        if name not in _LEFT_OUT and not isinstance(value, Path | tuple) and value not in (None, field.default):
            lines.append(f"{name} = {json.dumps(value)}")
    lines += ["", f"[endpoints.{endpoint}]"]
    lines += [f"model = {json.dumps(version.reference)}", f"format = {json.dumps(version.format.name)}"]
    if cache is not None:
        lines += [f"[endpoints.{endpoint}.cache]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in cache if value is not None]
    if stream is not None and stream.is_on:
        lines += [f"[endpoints.{endpoint}.stream]", *_stream_lines(stream)]
    return "\n".join([*lines, ""])


def _stream_lines(stream: StreamSettings) -> list[str]:
    """Return the settings of streams in TOML; its texts, numbers and lists are written as those of JSON."""
    lines = [f"feeds = {_inline(stream.feeds)}"]
    if stream.stop != StopSettings():
        stop = {name: value for name, value in stream.stop if value is not None}
        lines.append(f"stop = {_inline(stop)}")
    for name, value in stream:
        if name not in ("feeds", "stop"):
            lines.append(f"{name} = {json.dumps(value)}")
    return lines


def _inline(table: Mapping[str, object]) -> str:
    return f"{{ {', '.join(f'{json.dumps(key)} = {json.dumps(value)}' for key, value in table.items())} }}"


def readme(endpoint: str, version: PackedVersion) -> str:
    """Return what somebody who finds the folder wants to know."""
    return f"""# {endpoint}

`{version.reference}` ({version.digest}) as `{version.format.name}`, packaged by noa. It stays at this version.

    pip install -r requirements.txt
    bentoml serve . --host 127.0.0.1

Or `bentoml build` and `bentoml containerize`, or an image from `Containerfile`. `kubernetes/` holds manifests,
`kserve/` an InferenceService. Beyond loopback callers need keys: name a file of them in `NOA__SERVING__KEYS_FILE`.
"""
