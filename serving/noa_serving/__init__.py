"""The serving room: how is a model called?

A server is a child process that runs BentoML's machinery with noa's own stack inside. `start_server` and
`server_command` start one, `Client` calls one.
"""

from noa_serving._server_process import (
    READY_PATH,
    STARTED_PATH,
    ServerAddress,
    ServerCommand,
    ServerProcess,
    check_endpoints,
    check_port,
    read_address,
    server_command,
    start_server,
)
from noa_serving.client import Client, Prediction

__all__ = [
    "READY_PATH",
    "STARTED_PATH",
    "Client",
    "Prediction",
    "ServerAddress",
    "ServerCommand",
    "ServerProcess",
    "check_endpoints",
    "check_port",
    "read_address",
    "server_command",
    "start_server",
]
