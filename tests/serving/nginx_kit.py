"""nginx before several replicas, as docs/package.md tells: the same configuration, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
from packaged_kit import free_port
from serving_kit import wait_until

ROOT = Path(__file__).resolve().parents[2]
_MAIN = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/replicas.conf;
}}
"""


def documented() -> str:
    """Return the configuration in docs/package.md."""
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "package.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def nginx_program() -> str:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program is not None, "nginx is not installed: apt-get install -y nginx"
    return program


class Nginx:
    """A proxy on a free port; `use` sends requests to other replicas from now on."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.port = free_port()
        self._folder = folder
        folder.mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_MAIN.format(user=user, folder=folder))
        self._write(ports)
        argv = [nginx_program(), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        subprocess.run([*argv, "-t"], check=True, capture_output=True, text=True)
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            wait_until(self._listens, what="nginx", timeout_s=60)  # its file of the pid is there before it does
        except AssertionError:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return (self._folder / "error.log").read_text()

    def use(self, ports: Sequence[int]) -> None:
        """Take another configuration; who is connected is served to the end by the one before."""
        before = self._workers()
        self._write(ports)
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: bool(self._workers() - before), what="the new configuration", timeout_s=60)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def _write(self, ports: Sequence[int]) -> None:
        servers = "\n".join(f"    server 127.0.0.1:{port};" for port in ports)
        text = re.sub(r"(?:    server [\w.-]+:\d+;\n)+", f"{servers}\n", documented(), count=1)
        (self._folder / "replicas.conf").write_text(re.sub(r"listen \S+;", f"listen 127.0.0.1:{self.port};", text))

    def _workers(self) -> set[int]:
        return {process.pid for process in psutil.Process(self._process.pid).children()}
