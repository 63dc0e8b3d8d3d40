"""Starting a server: in the foreground (`start_server`) or by a supervisor (`server_command`).

What can be known before is checked before: the settings as a whole, the port, and (on request) that each endpoint's
model exists. The child reports the address on which it really listens in a file, so that port 0 works.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil

from noa.atomic_write import translate_disk_errors
from noa.errors import ConflictError, NotFoundError, ServiceError, SettingsError, SignatureError
from noa.formats import refuse_kept, remedy_without
from noa.settings import EndpointSettings, Settings
from noa_serving._launch_request import REQUEST_VARIABLE, LaunchRequest, new_request, serving_settings
from noa_serving._tls import own_server_context
from noa_serving.client import Client

if TYPE_CHECKING:
    from noa_registry import ModelVersion

_POLL_S = 0.02
_KILL_WAIT_S = 5.0
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a server listens. `pid` is the process to signal; `grpc_port` is None without gRPC."""

    host: str
    port: int
    pid: int
    workers: int
    grpc_port: int | None = None
    is_tls: bool = False

    @property
    def url(self) -> str:
        """The base URL; a server on all addresses is called on loopback."""
        return f"{'https' if self.is_tls else 'http'}://{_join(self.host, self.port)}"

    @property
    def grpc_target(self) -> str | None:
        """What gRPC clients connect to, e.g. `127.0.0.1:8001`."""
        return None if self.grpc_port is None else _join(self.host, self.grpc_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """How to start a server. `env` holds only what must be added to the environment.

    `ready_file` appears when the server listens. `STARTED_PATH` answers 200 once every endpoint was tried,
    `READY_PATH` once every endpoint answers; an endpoint whose alias does not exist yet keeps the second at 503.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    request: LaunchRequest

    @property
    def ready_file(self) -> Path:
        """The file in which the server writes where it listens."""
        return self.request.ready_file

    def read_address(self) -> ServerAddress | None:
        """Return where the server listens, None if it does not yet."""
        return read_address(self.ready_file)


STARTED_PATH = "/health/startup"
READY_PATH = "/v2/health/ready"


def server_command(
    settings: Settings,
    *,
    endpoints: Mapping[str, EndpointSettings] | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    grpc_port: int | None = None,
    die_with_parent: bool = False,
) -> ServerCommand:
    """Check everything, write the launch request, and return the command that starts the server.

    Arguments left out are taken from `settings`. The server ends on SIGTERM with exit code 0.

    Raises:
        SettingsError: the settings do not allow it (public host without keys, no endpoint, no such host).
        ConflictError: the port is in use; names the process if it can be found.
        StorageError: the project's state folder cannot be written.
    """
    whole = serving_settings(settings, endpoints=endpoints, host=host, port=port, workers=workers, grpc_port=grpc_port)
    check_port(whole.serving.host, whole.serving.port)
    if whole.serving.grpc_port is not None:
        check_port(whole.serving.host, whole.serving.grpc_port)
    request = new_request(whole, die_with_parent=die_with_parent)
    with translate_disk_errors(request.folder):
        request.save()
    return ServerCommand(
        argv=(sys.executable, "-m", "noa_serving"),
        env={REQUEST_VARIABLE: str(request.path), "BENTOML_DO_NOT_TRACK": "True"},
        request=request,
    )


class ServerProcess:
    """A server that this process started. Use it in a `with` block, or call `stop`."""

    def __init__(self, command: ServerCommand, process: subprocess.Popen[bytes], log_file: Path | None) -> None:
        self.command = command
        self._process = process
        self._log_file = log_file

    @property
    def pid(self) -> int:
        """The arbiter's process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait until the server ends and return its exit code."""
        return self._process.wait()

    def wait_started(self, timeout_s: float = 60.0) -> ServerAddress:
        """Wait until the server listens and every endpoint was tried once.

        Raises:
            ServiceError: it ended or did not answer in time; the message has the end of its log.
        """
        return self._wait(STARTED_PATH, timeout_s)

    def wait_ready(self, timeout_s: float = 60.0) -> ServerAddress:
        """Wait until every endpoint answers.

        Raises:
            ServiceError: it ended or did not become ready in time; the message has the end of its log.
        """
        return self._wait(READY_PATH, timeout_s)

    def ask_to_end(self) -> None:
        """Ask the server to finish what it has begun and to end, without waiting; takes no lock, so a handler may."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 40.0) -> int:
        """Let the server finish what it has begun, and return its exit code; kill what remains after `timeout_s`."""
        children = _children(self.pid)
        self.ask_to_end()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            children += _children(self.pid)
            self._process.kill()
            self._process.wait()
        for child in psutil.wait_procs(children, timeout=_KILL_WAIT_S)[1]:
            child.kill()
        psutil.wait_procs(children, timeout=_KILL_WAIT_S)
        return self._process.returncode

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, path: str, timeout_s: float) -> ServerAddress:
        deadline = time.monotonic() + timeout_s
        tls = own_server_context(self.command.request.settings.serving)
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failed(f"the server ended with exit code {self._process.returncode}")
            address = self.command.read_address()
            if address is not None:
                with Client(address.url, timeout_s=1.0, tls=tls) as client:
                    if client.answers(path):
                        return address
            time.sleep(_POLL_S)
        raise self._failed(f"the server was not ready after {timeout_s:g} s")

    def _failed(self, what: str) -> ServiceError:
        log = None if self._log_file is None else str(self._log_file)
        return ServiceError(what, where=log, received=_tail(self._log_file), log=log)


def start_server(
    settings: Settings,
    *,
    endpoints: Mapping[str, EndpointSettings] | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    grpc_port: int | None = None,
    log_file: Path | None = None,
    die_with_parent: bool = True,
) -> ServerProcess:
    """Start a server in a process group of its own; its output goes to `log_file` (None: to ours).

    Raises:
        SettingsError, ConflictError, StorageError: see `server_command`; nothing was started.
    """
    command = server_command(
        settings,
        endpoints=endpoints,
        host=host,
        port=port,
        workers=workers,
        grpc_port=grpc_port,
        die_with_parent=die_with_parent,
    )
    environment = {**os.environ, **command.env}
    if die_with_parent:
        environment["NOA_SERVING_PARENT"] = str(os.getpid())
    if log_file is None:
        process = subprocess.Popen(command.argv, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        return ServerProcess(command, process, None)
    with translate_disk_errors(log_file):
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                command.argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    return ServerProcess(command, process, log_file)


def check_endpoints(settings: Settings, endpoints: Mapping[str, EndpointSettings]) -> None:
    """Check that each endpoint's version exists, has the format, and that its files are what was sealed.

    Raises:
        NotFoundError: it does not; the message says what there is.
        InvalidInputError: the format is one that noa never loads, or runs code that nobody has allowed, or the choice
            is left to the server and there is none.
        SignatureError: its streams do not fit the model.
        IntegrityError: a file was changed; names it.
    """
    from noa_registry import Registry
    from noa_serving._format_choice import AUTO, require_choice
    from noa_serving._runtimes import CODE_FORMATS, Runtimes, require_allowed

    runtimes = Runtimes.of(settings.serving, threads=settings.serving.threads or 1)
    with Registry.open(settings.registry) as registry:
        for name, endpoint in endpoints.items():
            version = registry.resolve(endpoint.model)
            if endpoint.stream.is_on:
                _require_stream(name, endpoint, version)
            if endpoint.format == AUTO:
                for format_name in require_choice(registry, version, runtimes):
                    registry.open_format(version, format_name)
                continue
            if endpoint.format not in version.formats:
                raise NotFoundError(
                    f"endpoint `{name}` asks for the format `{endpoint.format}`, which `{version.reference}` lacks",
                    expected=", ".join(f"`{one}`" for one in sorted(version.formats)),
                    received=f"`{endpoint.format}`",
                    remedy=remedy_without(endpoint.format, native=version.native, reference=version.reference),
                )
            refuse_kept(endpoint.format, reference=version.reference)
            if endpoint.format in CODE_FORMATS:
                require_allowed(version.name, endpoint.format, settings.serving.code)
            registry.open_format(version, endpoint.format)


def _require_stream(name: str, endpoint: EndpointSettings, version: ModelVersion) -> None:
    from noa_serving.stream_fit import fit_stream

    try:
        fit_stream(endpoint.stream, version.signature)
    except SignatureError as exc:
        exc.where = f"[endpoints.{name}] with {version.reference}"
        raise


def check_port(host: str, port: int) -> None:
    """Check that a server may listen there.

    Raises:
        ConflictError: the port is in use; names the process if it can be found.
        SettingsError: the host is not one of this machine, or the port is not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise SettingsError(f"host `{host}` has no address", where="serving.host", received=host) from exc
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                reason = os.strerror(exc.errno or 0).lower()
                raise SettingsError(f"cannot listen on {host}:{port}: {reason}", where="serving.port") from exc
            raise _port_in_use(host, port) from exc


def read_address(ready_file: Path) -> ServerAddress | None:
    """Return what a server wrote into its ready file, None if it has not yet."""
    try:
        table = cast("dict[str, object]", json.loads(ready_file.read_text()))
    except FileNotFoundError:
        return None
    return ServerAddress(
        host=str(table["host"]),
        port=int(str(table["port"])),
        pid=int(str(table["pid"])),
        workers=int(str(table["workers"])),
        grpc_port=None if table.get("grpc_port") is None else int(str(table["grpc_port"])),
        is_tls=bool(table.get("is_tls")),
    )


def _join(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port_in_use(host: str, port: int) -> ConflictError:
    pid = _listener(port)
    holder = None
    if pid is not None:
        try:
            holder = f"process {pid} ({psutil.Process(pid).name()})"
        except psutil.Error:
            holder = f"process {pid}"
    return ConflictError(
        f"port {port} on {host} is in use",
        received=holder,
        remedy="Stop that process, or choose another port with `--port` (0: a free one)",
        port=port,
        pid=pid,
    )


def _listener(port: int) -> int | None:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    return next((one.pid for one in connections if one.status == "LISTEN" and one.laddr and one.laddr[1] == port), None)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _tail(log_file: Path | None) -> str | None:
    if log_file is None or not log_file.exists():
        return None
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip() or None
