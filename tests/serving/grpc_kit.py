"""A gRPC server of this process on a free port, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from noa_serving.__main__ import reserve_port
from noa_serving._asgi import AsgiApplication
from noa_serving._grpc_server import GrpcServer


@contextmanager
def serving_grpc(app: AsgiApplication) -> Iterator[str]:
    """Serve an application over gRPC and give the address."""
    with reserve_port("127.0.0.1", 0) as reserved:
        port = int(reserved.getsockname()[1])
        loop = asyncio.new_event_loop()
        started, ended = threading.Event(), asyncio.Event()

        async def serve() -> None:
            server = GrpcServer(app._application, host="127.0.0.1", port=port)
            await server.start()
            started.set()
            await ended.wait()
            await server.stop()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        assert started.wait(20)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(20)
            loop.close()
