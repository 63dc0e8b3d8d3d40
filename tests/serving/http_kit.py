"""The application of this process on a real socket, in a thread: the protocol class and ASGI as in a worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from serving_kit import wait_until

from noa_serving._asgi import AsgiApplication
from noa_serving._protocol import hot_protocol


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Signals belong to pytest."""


@contextmanager
def serving_http(app: AsgiApplication) -> Iterator[str]:
    """Serve an application over HTTP and give the URL. The follower is not started: what is loaded stays."""
    protocol = hot_protocol(app._application)
    # Its own set-up of logging closes the handlers of others: that of absl (JAX) closes pytest's capture with it.
    config = uvicorn.Config(app, port=0, http=protocol, lifespan="off", log_config=None, log_level="warning", ws="none")
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the server")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
