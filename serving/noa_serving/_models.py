"""What the Open Inference Protocol tells about models, apart from any transport: REST and gRPC give the same answers.

Metadata, readiness, index and refusals, with Triton's extensions for statistics and configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from noa import __version__
from noa.errors import NoaError, NotFoundError
from noa.settings import FALLBACK_ARM
from noa_serving._http import RequestRefusedError
from noa_serving._json_body import JsonObject
from noa_serving._statistics import describe_statistics
from noa_serving._tensors import DATATYPES

if TYPE_CHECKING:
    from noa.signatures import TensorSpec
    from noa_serving._endpoint import Endpoint
    from noa_serving._generation import Generation

_PLATFORMS = {
    "onnx": "onnxruntime_onnx",
    "torch": "pytorch_exported_program",
    "jax": "jax_stablehlo",
    "pipeline": "ensemble",
}
_CONFIG_TYPES = {"string": "STRING"}  # Triton's configuration has other words than its protocol
_MAX_DIGITS = 9


class Models:
    """The endpoints of one worker, as clients of the protocol see them: each is a model with one version at a time."""

    def __init__(self, endpoints: Mapping[str, Endpoint], *, extensions: tuple[str, ...], max_batch_items: int) -> None:
        self._endpoints = endpoints
        self._extensions = extensions
        self._max_batch_items = max_batch_items

    def only(self, endpoints: Mapping[str, Endpoint]) -> Models:
        """Return the same with fewer endpoints."""
        return Models(endpoints, extensions=self._extensions, max_batch_items=self._max_batch_items)

    def server(self) -> JsonObject:
        """Return the server metadata."""
        return {"name": "noa", "version": __version__, "extensions": self._extensions}

    def waiting(self) -> list[str]:
        """Return the endpoints that the server does not answer for yet."""
        return [name for name, one in self._endpoints.items() if not one.is_ready]

    def find(self, name: str) -> Endpoint:
        """Return an endpoint.

        Raises:
            NotFoundError: there is no such endpoint.
        """
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            known = ", ".join(f"`{one}`" for one in self._endpoints)
            raise NotFoundError(f"no model `{name[:128]}` is served here", expected=known, received=f"`{name[:128]}`")
        return endpoint

    def require(self, name: str, version: str = "") -> Generation:
        """Return the generation that answers; an empty `version` asks for any.

        Raises:
            NotFoundError: no such endpoint, or it serves another version.
            RequestRefusedError: 503, nothing is loaded yet.
        """
        return require_version(self.find(name), parse_version(name, version))

    def is_ready(self, name: str, version: str = "") -> bool:
        """Tell whether the server answers for an endpoint.

        Raises:
            NotFoundError: no such endpoint, or it serves another version.
        """
        number = parse_version(name, version)
        endpoint = self.find(name)
        if endpoint.current is None or not endpoint.is_ready:
            return False
        require_version(endpoint, number)
        return True

    def metadata(self, name: str, version: str = "") -> JsonObject:
        """Return the metadata of a model, with the versions that answer for it. Errors as in `require`."""
        table = describe_model(self.require(name, version))
        return table if version else {**table, "versions": [str(one.number) for one in _answering(self.find(name))]}

    def index(self, *, only_ready: bool) -> list[JsonObject]:
        """Return the rows of the repository index."""
        return [_index_row(one) for one in self._endpoints.values() if one.current is not None or not only_ready]

    def statistics(self, name: str = "", version: str = "") -> JsonObject:
        """Return the statistics of one model, or of all that are loaded, by version. Errors as in `require`."""
        if name:
            asked = self.require(name, version)
            found = [asked] if version else _answering(self.find(name))
        else:
            found = [one for endpoint in self._endpoints.values() for one in _answering(endpoint)]
        return {"model_stats": [describe_statistics(one) for one in found]}

    def config(self, name: str, version: str = "") -> JsonObject:
        """Return the configuration of a model as Triton would write it. Errors as in `require`.

        `max_batch_size` is 0, and the shapes are whole, unless every tensor begins with one free axis.
        """
        generation = self.require(name, version)
        signature = generation.signature
        specs = (*signature.inputs, *signature.outputs)
        is_batched = all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)
        return {
            "name": generation.endpoint,
            "platform": platform_of(generation),
            "backend": generation.format,
            "version_policy": {"specific": {"versions": [generation.number]}},
            # Only streams have several answers; where there are some, a single one can be had as well.
            **({} if generation.stream is None else {"model_transaction_policy": {"decoupled": True}}),
            "max_batch_size": self._max_batch_items if is_batched else 0,
            "input": [_config_tensor(spec, is_batched=is_batched) for spec in signature.inputs],
            "output": [_config_tensor(spec, is_batched=is_batched) for spec in signature.outputs],
        }

    def refuse_change(self, name: str) -> NoaError:
        """Return why a model is not loaded or unloaded by a client.

        Raises:
            NotFoundError: no such endpoint.
        """
        self.find(name)
        return RequestRefusedError(
            "models are not loaded or unloaded by hand here",
            status=400,
            remedy="Endpoints follow the registry: promote or roll back a version",
        )


def describe_model(generation: Generation) -> JsonObject:
    """Return the model metadata; a free axis is written -1."""
    return {
        "name": generation.endpoint,
        "versions": [str(generation.number)],
        "platform": platform_of(generation),
        "inputs": [_tensor_metadata(spec) for spec in generation.signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in generation.signature.outputs],
    }


def platform_of(generation: Generation) -> str:
    """Return the protocol's name for what runs the model."""
    return _PLATFORMS.get(generation.format, f"noa_{generation.format}")


def parse_version(name: str, version: str) -> int | None:
    """Return a version's number, None for an empty text.

    Raises:
        NotFoundError: it is no number, so there is no such version.
    """
    if not version:
        return None
    if not (version.isascii() and version.isdecimal() and len(version) <= _MAX_DIGITS):
        raise NotFoundError(f"no version `{version[:40]}` of endpoint `{name[:128]}`")
    return int(version)


def require_version(endpoint: Endpoint, number: int | None) -> Generation:
    """Return the main version if `number` is None or names it, else the arm that serves version `number`.

    The fallback stands in for a main version that is not there, where no version is asked for.

    Raises:
        RequestRefusedError: 503, nothing is loaded yet.
        NotFoundError: neither serves it.
    """
    if endpoint.current is None and number is None and (stand_in := _answering(endpoint)):
        return stand_in[0]
    generation = endpoint.require()
    if number is None or generation.number == number:
        return generation
    arm = None if endpoint.traffic is None else endpoint.traffic.find(number)
    if arm is None:
        raise NotFoundError(
            f"version `{number}` of endpoint `{endpoint.name}` is not loaded",
            expected=", ".join(f"`{one.number}`" for one in _answering(endpoint)),
            received=f"`{number}`",
        )
    return arm


def _answering(endpoint: Endpoint) -> list[Generation]:
    """Return the versions that answer for an endpoint: the main one, then those of arms."""
    if endpoint.current is not None:
        return [endpoint.current, *([] if endpoint.traffic is None else endpoint.traffic.answering())]
    fallback = None if endpoint.traffic is None else endpoint.traffic.generation_of(FALLBACK_ARM)
    return [] if fallback is None else [fallback]


def _tensor_metadata(spec: TensorSpec) -> JsonObject:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": _sizes(spec.shape)}


def _config_tensor(spec: TensorSpec, *, is_batched: bool) -> JsonObject:
    shape = spec.shape[1:] if is_batched else spec.shape
    return {
        "name": spec.name,
        "data_type": f"TYPE_{_CONFIG_TYPES.get(spec.dtype, DATATYPES[spec.dtype])}",
        "dims": _sizes(shape),
    }


def _sizes(shape: tuple[int | str, ...]) -> list[int]:
    return [axis if isinstance(axis, int) else -1 for axis in shape]


def _index_row(endpoint: Endpoint) -> JsonObject:
    now = endpoint.current
    if now is not None:
        return {"name": endpoint.name, "version": str(now.number), "state": "READY", "reason": ""}
    reason = endpoint.waiting_for or ("its model could not be loaded" if endpoint.failure else "loading")
    return {"name": endpoint.name, "version": "", "state": "UNAVAILABLE", "reason": reason}
