"""`grpc_call.py PORT FILE`: send a `ModelInferRequest` as it is in the file, write the answer's bytes to stdout."""

from __future__ import annotations

import sys
from pathlib import Path

import grpc


def main() -> None:
    with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        sys.stdout.buffer.write(call(Path(sys.argv[2]).read_bytes(), timeout=20, wait_for_ready=True))


if __name__ == "__main__":
    main()
