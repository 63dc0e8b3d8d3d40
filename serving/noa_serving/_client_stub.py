"""What the page of a server shows to callers: commands to try, and a typed Python function per endpoint."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from noa_serving._generation import Generation


def curl_examples(generation: Generation, example: object) -> list[str]:
    """Return commands that work as they stand, but for the address; `example` is a JSON body."""
    lines: list[str] = []
    name = generation.endpoint
    if example is not None:
        body = orjson.dumps(example).decode().replace("'", "'\\''")
        lines.append(f"curl -H 'content-type: application/json' -d '{body}' http://HOST:PORT/predict/{name}")
        if generation.stream is not None:  # `-N`: curl shows each event when it comes
            lines.append(f"{lines[0].replace('curl ', 'curl -N ', 1)}/stream")
    kind, suffix = ("npy", ".npy") if len(generation.input_names) == 1 else ("npz", ".npz")
    lines.append(
        f"curl -H 'content-type: application/x-{kind}' --data-binary @inputs{suffix} -o outputs{suffix} "
        f"http://HOST:PORT/predict/{name}"
    )
    return lines


def client_stub(generation: Generation) -> str:
    """Return the source of a Python function that calls the endpoint, with an argument per input."""
    specs = generation.signature.inputs
    arguments = _identifiers([spec.name for spec in specs])
    takes = ", ".join(f"{argument}: np.ndarray" for argument in arguments)
    table = ", ".join(f"{spec.name!r}: {argument}" for spec, argument in zip(specs, arguments, strict=True))
    shapes = [f"    {argument}: {spec.describe()}" for spec, argument in zip(specs, arguments, strict=True)]
    gives = ", ".join(f"{spec.name} {spec.describe()}" for spec in generation.signature.outputs)
    function = _identifiers([f"predict_{generation.endpoint}"])[0]
    return "\n".join(
        (
            "import numpy as np",
            "from noa_serving import Client",
            "",
            "",
            f"def {function}(client: Client, {takes}) -> dict[str, np.ndarray]:",
            f"    # gives {_one_line(gives)}",
            *(f"    #{_one_line(shape)}" for shape in shapes),
            f"    return dict(client.predict({generation.endpoint!r}, {{{table}}}).outputs)",
            "",
        )
    )


def _identifiers(names: list[str]) -> list[str]:
    """Return a distinct Python name for each name."""
    found: list[str] = []
    for name in names:
        text = re.sub(r"[^0-9A-Za-z_]", "_", name)
        if not text or text[0].isdigit() or keyword.iskeyword(text) or text in ("np", "client", "Client", "dict"):
            text = f"input_{text}"
        while text in found:
            text += "_"
        found.append(text)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
