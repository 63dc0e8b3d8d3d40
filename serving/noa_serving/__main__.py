"""`python -m noa_serving`: one server, run by BentoML's own `serve` command until it is told to stop.

Reads its launch request from the file named in the environment. BentoML's arbiter listens, starts the workers, starts
one again that dies, and ends them on SIGTERM.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import ssl
import sys
from importlib.util import find_spec
from pathlib import Path

from noa.errors import ConflictError, DependencyMissingError, NoaError, SettingsError
from noa_serving._exposure import check_exposure, is_open
from noa_serving._launch_request import REQUEST_VARIABLE, LaunchRequest, hold, load_request
from noa_serving._parent_death import die_with_parent

SERVICE = "noa_serving.bento_service:SERVICE"
PARENT_VARIABLE = "NOA_SERVING_PARENT"
OPEN_TO_ALL = "anybody who reaches {host} is answered without a key (serving.allow_unauthenticated)"
KEEP_ALIVE_S = 75
GRACE_S = 5


def main() -> int:
    """Run the server; returns the process's exit code."""
    try:
        request = load_request(_request_path())
        serving = request.settings.serving
        require_engine(grpc=serving.grpc_port is not None, traces=bool(serving.trace_endpoint))
        if request.die_with_parent:
            die_with_parent(int(os.environ[PARENT_VARIABLE]) if PARENT_VARIABLE in os.environ else None)
        check_exposure(request.settings.serving)
        lock = hold(request)
    except NoaError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        return 1
    try:
        return _serve(request)
    except NoaError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        return 1
    finally:
        shutil.rmtree(request.folder, ignore_errors=True)
        lock.close()


def require_engine(*, grpc: bool = False, traces: bool = False) -> None:
    """Refuse to start without BentoML and the fast event loop and parser, or without what gRPC and traces need.

    Raises:
        DependencyMissingError: with the install command.
    """
    for package in ("bentoml", "uvloop", "httptools"):
        if find_spec(package) is None:
            raise DependencyMissingError(package, extra="serve", purpose="serving")
    if grpc:
        for package in ("grpc", "grpc_reflection"):
            if find_spec(package) is None:
                raise DependencyMissingError(package, extra="grpc", purpose="serving over gRPC")
    if traces and not _has_otlp():
        raise DependencyMissingError("opentelemetry-proto", extra="trace", purpose="sending traces")


def _has_otlp() -> bool:
    try:
        return find_spec("opentelemetry.proto") is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def reserve_port(address: str, port: int) -> socket.socket:
    """Hold a port for the workers, which all listen on it (`SO_REUSEPORT`); 0 chooses a free one.

    A socket that is bound and does not listen gets no connection.

    Raises:
        ConflictError: the port is in use.
    """
    holder = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind((address, port))
    except OSError as exc:
        holder.close()
        raise ConflictError(
            f"port {port} on {address} is in use", remedy="Choose another `serving.grpc_port` (0: a free one)"
        ) from exc
    return holder


def bento_environment(folder: Path) -> dict[str, str]:
    """Return the variables that keep BentoML from the network and from the user's home folder."""
    return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml"), "NO_COLOR": "1"}


def _request_path() -> Path:
    path = os.environ.get(REQUEST_VARIABLE)
    if path is None:
        raise SettingsError(
            f"the environment variable `{REQUEST_VARIABLE}` is not set",
            expected="the path of a launch request",
            remedy="Start the server with `noa serve`",
        )
    return Path(path)


def _serve(request: LaunchRequest) -> int:
    os.environ.update(bento_environment(request.folder))
    from bentoml_cli.cli import cli

    from noa_serving._bento_arbiter import look_for_dead_workers_often

    look_for_dead_workers_often()
    serving = request.settings.serving
    if is_open(serving):
        print(f"WARNING: {OPEN_TO_ALL.format(host=serving.host)}", file=sys.stderr, flush=True)
    reserved = None if serving.grpc_port is None else reserve_port(_address(serving.host), serving.grpc_port)
    if reserved is not None:
        request.grpc_file.write_text(str(reserved.getsockname()[1]))
    arguments = ["serve", SERVICE, "--host", _address(serving.host), "--port", str(serving.port)]
    arguments += ["--working-dir", str(request.folder), "--timeout-keep-alive", str(KEEP_ALIVE_S)]
    arguments += ["--timeout-graceful-shutdown", str(math.ceil(serving.timeout_s) + GRACE_S)]
    if serving.tls_certificate is not None:
        arguments += ["--ssl-certfile", str(serving.tls_certificate), "--ssl-keyfile", str(serving.tls_key)]
    if serving.tls_client_ca is not None:
        arguments += ["--ssl-ca-certs", str(serving.tls_client_ca), "--ssl-cert-reqs", str(int(ssl.CERT_REQUIRED))]
    try:
        cli(arguments, prog_name="bentoml", standalone_mode=False)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
    finally:
        if reserved is not None:
            reserved.close()
    return 0


def _address(host: str) -> str:
    """Return the IP address of `host`; BentoML takes nothing else."""
    return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])


if __name__ == "__main__":
    raise SystemExit(main())
