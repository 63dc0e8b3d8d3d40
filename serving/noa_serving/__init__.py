"""The serving room: how is a model called?

A server is a child process that runs BentoML's machinery with noa's own stack inside. `start_server` and
`server_command` start one, `Client` and `AsyncClient` call one.
"""

from noa_serving._client_wire import NoAnswerError, Prediction
from noa_serving._exposure import check_exposure, is_open
from noa_serving._own_key import key_to_call_own
from noa_serving._running_servers import RunningServer, running_servers
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
from noa_serving._tls import client_context, own_server_context
from noa_serving.async_client import AsyncClient
from noa_serving.client import Client
from noa_serving.client_streams import AsyncStepStream, Step, StepStream, StreamEnd

__all__ = [
    "READY_PATH",
    "STARTED_PATH",
    "AsyncClient",
    "AsyncStepStream",
    "Client",
    "NoAnswerError",
    "Prediction",
    "RunningServer",
    "ServerAddress",
    "ServerCommand",
    "ServerProcess",
    "Step",
    "StepStream",
    "StreamEnd",
    "check_endpoints",
    "check_exposure",
    "check_port",
    "client_context",
    "is_open",
    "key_to_call_own",
    "own_server_context",
    "read_address",
    "running_servers",
    "server_command",
    "start_server",
]
