"""What a server process is told, in one private file: all settings with their secrets, and where to report that it
listens.

The file is the only place that holds secrets (mode 0600, in a folder of mode 0700), so none stands in an argument or an
environment variable. It lives as long as the server, because a worker that is started again reads it again.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from pydantic import SecretStr, ValidationError

from noa.atomic_write import write_file
from noa.errors import NotFoundError, SettingsError
from noa.settings import EndpointSettings, Settings
from noa_serving._arm_names import followed_names
from noa_serving._board import create_board
from noa_serving._exposure import check_exposure
from noa_serving._quotas import make_shared

REQUEST_VARIABLE = "NOA_SERVING_REQUEST"
ARBITER_VARIABLE = "NOA_SERVING_ARBITER"
"""The process id of the arbiter, for its workers."""

_FOLDER = "serving"
_REQUEST_FILE = "request.json"
_READY_FILE = "ready.json"
_GRPC_FILE = "grpc_port"
_REGIONS_FOLDER = "regions"
_QUOTAS_FILE = "quotas"
_KEYS_SEEN_FILE = "keys-seen"
_STALE_AFTER_S = 120.0  # a start that takes longer has failed; a killed server's keys must not lie about


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """One start of a server. `settings` are whole and checked: endpoints, host, port and workers are in them."""

    settings: Settings
    folder: Path
    die_with_parent: bool
    own_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """By which the project calls its own server; see `_own_key`."""

    @property
    def path(self) -> Path:
        """The file of this request."""
        return self.folder / _REQUEST_FILE

    @property
    def ready_file(self) -> Path:
        """The file in which the server writes where it listens."""
        return self.folder / _READY_FILE

    @property
    def grpc_file(self) -> Path:
        """The file that holds the port on which the workers answer gRPC, written before they start."""
        return self.folder / _GRPC_FILE

    @property
    def regions_folder(self) -> Path | None:
        """The folder of registered shared-memory regions, None where the settings do not allow them."""
        return self.folder / _REGIONS_FOLDER if self.settings.serving.shared_memory else None

    @property
    def keys_seen_file(self) -> Path:
        """The file that a worker makes when it sees that clients need keys, for those that start later."""
        return self.folder / _KEYS_SEEN_FILE

    @property
    def quotas_file(self) -> Path | None:
        """The file in which the workers share what clients have used of their quotas, None where there are none."""
        serving = self.settings.serving
        has_quotas = serving.quota_requests_per_s is not None or serving.quota_bytes_per_s is not None
        return self.folder / _QUOTAS_FILE if has_quotas else None

    def save(self) -> None:
        """Write the file, readable by this user only."""
        self.folder.mkdir(parents=True, mode=0o700)
        if self.regions_folder is not None:
            self.regions_folder.mkdir(mode=0o700)
        create_board(
            self.folder, size=self.settings.serving.workers, endpoints=len(followed_names(self.settings.endpoints))
        )
        if self.quotas_file is not None:
            make_shared(self.quotas_file)
        table = {
            "settings": _reveal(self.settings.model_dump()),
            "die_with_parent": self.die_with_parent,
            "own_key": self.own_key,
        }
        write_file(self.path, json.dumps(table), private=True)


def new_request(settings: Settings, *, die_with_parent: bool) -> LaunchRequest:
    """Return a request with a fresh folder below the project's state folder, and remove what dead servers left
    there."""
    parent = settings.state_dir / _FOLDER
    sweep(parent)
    folder = parent / f"{int(time.time())}-{secrets.token_hex(4)}"
    return LaunchRequest(settings=settings, folder=folder, die_with_parent=die_with_parent)


def requests_of(state_dir: Path) -> list[Path]:
    """Return the files of all requests below a project's state folder, also of servers that were killed."""
    return sorted((state_dir / _FOLDER).glob(f"*/{_REQUEST_FILE}"))


def load_request(path: Path) -> LaunchRequest:
    """Read a request.

    Raises:
        NotFoundError: there is no such file; its server was stopped.
        SettingsError: it is not readable.
    """
    try:
        table = cast("dict[str, object]", json.loads(path.read_text()))
        settings = Settings.model_validate(table["settings"])
        return LaunchRequest(
            settings=settings,
            folder=path.parent,
            die_with_parent=bool(table["die_with_parent"]),
            own_key=str(table.get("own_key") or secrets.token_urlsafe(32)),  # one of an older noa has none
        )
    except FileNotFoundError as exc:
        raise NotFoundError("no such launch request", where=str(path), remedy="Start the server again") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SettingsError("a launch request is not readable", where=str(path)) from exc


def arbiter_of(environ: Mapping[str, str]) -> int | None:
    """Return the process that must be a worker's parent; as the first process of a container it has no parent."""
    told = environ.get(ARBITER_VARIABLE)
    return None if told is None else int(told)


def serving_settings(
    settings: Settings,
    *,
    endpoints: Mapping[str, EndpointSettings] | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    grpc_port: int | None = None,
) -> Settings:
    """Return the settings with what a caller overrides, checked again as a whole.

    Raises:
        SettingsError: the result is not allowed, e.g. a public host without keys, or no endpoint at all.
    """
    table = cast("dict[str, object]", _reveal(settings.model_dump()))
    serving = cast("dict[str, object]", table["serving"])
    overrides: dict[str, object] = {"host": host, "port": port, "workers": workers, "grpc_port": grpc_port}
    serving.update({key: value for key, value in overrides.items() if value is not None})
    if endpoints is not None:
        table["endpoints"] = {name: endpoint.model_dump() for name, endpoint in endpoints.items()}
    if not table["endpoints"]:
        raise SettingsError(
            "there is nothing to serve",
            expected="an endpoint in `noa.toml`, or a model such as `digits@champion`",
            remedy='Add [endpoints.digits] with model = "digits@champion"',
        )
    try:
        whole = Settings.model_validate(table)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"the server cannot start so: {first['msg']}", where=where) from exc
    check_exposure(whole.serving)
    return whole


def hold(request: LaunchRequest) -> IO[bytes]:
    """Lock the request for the life of this process, which tells `sweep` that its server lives."""
    file = request.path.open("rb")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def sweep(parent: Path) -> None:
    """Remove folders of servers that were killed: nobody holds their lock, and they are not just being started."""
    for path in parent.glob(f"*/{_REQUEST_FILE}"):
        with suppress(OSError), path.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _STALE_AFTER_S:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)


def _reveal(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _reveal(inner) for key, inner in cast("dict[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_reveal(inner) for inner in cast("tuple[object, ...]", value)]
    return value
