"""The lean set: what a packaged endpoint needs to run, and nothing else, at the versions of this environment.

It starts from what serving and the chosen format import, and follows what these packages say they require. Neither
MLflow nor a training framework is in it unless the format is that framework's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions, packages_distributions
from typing import TYPE_CHECKING, Final, cast

from noa.errors import DependencyMissingError, InvalidInputError
from noa.formats import find_adapter

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from noa.settings import ServingSettings

_SERVING: Final = (
    "bentoml", "httptools", "numpy", "orjson", "psutil", "pydantic", "pyyaml", "safetensors", "uvicorn", "uvloop",
)  # fmt: skip
_GRPC: Final = ("grpcio", "grpcio-reflection", "protobuf")
_FOR_FORMATS: Final = {"onnx": ("ml-dtypes",)}
_IF_INSTALLED: Final = {"torch": ("ml-dtypes",)}  # for tensors of bfloat16
_TRACE: Final = ("opentelemetry-proto", "protobuf", "urllib3")
EXTRAS: Final = {"arrow": ("pyarrow",), "jwt": ("pyjwt", "cryptography"), "grpc": _GRPC, "trace": _TRACE}
"""What a package may hold besides, by name: Arrow bodies and the payload log, tokens, gRPC, traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanSet:
    """`roots` are what noa itself imports, `pins` all that they need: names and versions, sorted."""

    roots: tuple[str, ...]
    pins: tuple[tuple[str, str], ...]

    def to_text(self) -> str:
        """Return the lines of a requirements file."""
        return "".join(f"{name}=={version}\n" for name, version in self.pins)


def lean_set(format: str, serving: ServingSettings, *, extras: Iterable[str] = ()) -> LeanSet:  # our word
    """Return what an endpoint of that format needs.

    Raises:
        DependencyMissingError: something of it is not installed here, so that its version is not known.
        InvalidInputError: an extra that does not exist.
    """
    installed = {_normal(one.name): one for one in reversed(list(distributions()))}  # the first found is imported
    wanted = list(_SERVING) + [_distribution_of(module, format, installed) for module in _modules_of(format)]
    wanted += _FOR_FORMATS.get(format.partition("-")[0], ())
    wanted += (name for name in _IF_INSTALLED.get(format, ()) if name in installed)
    chosen = set(extras)
    if serving.grpc_port is not None:
        chosen.add("grpc")
    if serving.jwt_issuer:
        chosen.add("jwt")
    if serving.trace_endpoint:
        chosen.add("trace")
    for extra in sorted(chosen):
        if extra not in EXTRAS:
            raise InvalidInputError(
                f"no extra `{extra}` for a package", expected=", ".join(f"`{one}`" for one in EXTRAS), received=extra
            )
        wanted += EXTRAS[extra]
    roots = tuple(sorted({_normal(name) for name in wanted}))
    return LeanSet(roots=roots, pins=tuple(sorted(_closure(roots, installed).items())))


def _modules_of(format: str) -> tuple[str, ...]:
    return cast("tuple[str, ...]", getattr(find_adapter(format), "packages", ()))


def _distribution_of(module: str, format: str, installed: Mapping[str, Distribution]) -> str:
    if _normal(module) in installed:
        return module
    found = packages_distributions().get(module)
    if not found:
        raise DependencyMissingError(module, extra=format.partition("-")[0], purpose=f"packaging the format `{format}`")
    return found[0]


def _closure(roots: Iterable[str], installed: Mapping[str, Distribution]) -> dict[str, str]:
    """Follow what each distribution requires, with the extras that it asks for."""
    from packaging.requirements import Requirement

    pins: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(root, "") for root in roots]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        found = installed.get(name)
        if found is None:
            raise DependencyMissingError(name, extra="serve", purpose="packaging an endpoint")
        pins[name] = found.version
        for line in found.requires or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                inner = _normal(required.name)
                waiting += [(inner, ""), *((inner, one) for one in required.extras)]
    return pins


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
