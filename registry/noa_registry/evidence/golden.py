"""Golden requests: inputs and what the source format answered, kept when another format was proven equivalent to it.

Whoever serves a version asks them before it answers anybody: the bytes are right, the framework on this machine and its
threads may not be. The tensors lie in the attachment of the equivalence evidence, one safetensors file of at most
`MAX_GOLDEN_BYTES`; the evidence names its digest and, for each output, the difference that was allowed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from noa.errors import IntegrityError, InvalidInputError
from noa_registry.evidence.facts import EQUIVALENCE, Attachment, Evidence
from noa_registry.evidence.reading import Reader

if TYPE_CHECKING:
    import numpy as np

MAX_GOLDEN_BYTES: Final = 1 << 20
MEDIA_TYPE: Final = "application/vnd.noa.golden+safetensors"
_TENSOR_BYTES = 128  # of the header of a safetensors file for each tensor, besides its name
_NAME_BYTES = 12  # of each character of a name, in JSON
MAX_GOLDEN_REQUESTS: Final = 64
_INPUT, _OUTPUT = "input", "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest:
    """Arrays by name: what was asked, and what the source format answered."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    @property
    def is_plain(self) -> bool:
        """Whether all of it are numbers and booleans that NumPy knows by itself."""
        return all(array.dtype.kind in "biuf" for part in (self.inputs, self.outputs) for array in part.values())

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the attachment, at most."""
        return sum(
            array.nbytes + _TENSOR_BYTES + _NAME_BYTES * len(name)
            for part in (self.inputs, self.outputs)
            for name, array in part.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedDifference:
    """What an output may differ by: `absolute + relative * |value| + of_largest * max |value|`, and why.

    `disagreement` is the share of the elements that may differ at all, for outputs of whole numbers.
    """

    absolute: float
    relative: float
    of_largest: float
    disagreement: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequests:
    """What format `source` answered, and what may be another's difference from it by output name."""

    source: str
    requests: tuple[GoldenRequest, ...]
    allowed: Mapping[str, AllowedDifference]


def with_golden(fact: Evidence, golden: GoldenRequests) -> Evidence:
    """Return equivalence evidence that carries golden requests; without any of them it is as it was.

    Those are kept that fit into `MAX_GOLDEN_BYTES`, in their order.
    """
    from safetensors.numpy import save

    kept = golden_that_fit(golden.requests)
    if not kept:
        return fact
    content = save({key: _little_endian(array) for key, array in _tensors(kept)})
    attachment = Attachment(media_type=MEDIA_TYPE, content=content)
    outputs = {
        name: {
            "absolute": allowed.absolute,
            "relative": allowed.relative,
            "of_largest": allowed.of_largest,
            "disagreement": allowed.disagreement,
            "reason": allowed.reason,
        }
        for name, allowed in golden.allowed.items()
    }
    values = {**fact.values, "golden": {"requests": len(kept), "outputs": outputs}, "attachment": attachment.digest}
    return replace(fact, values=values, attachments=(*fact.attachments, attachment))


def golden_that_fit(requests: Iterable[GoldenRequest]) -> tuple[GoldenRequest, ...]:
    """Return the requests that fit together into an attachment, the first ones first."""
    kept: list[GoldenRequest] = []
    room = MAX_GOLDEN_BYTES - _TENSOR_BYTES
    for request in requests:
        if request.is_plain and request.size_bytes <= room and len(kept) < MAX_GOLDEN_REQUESTS:
            kept.append(request)
            room -= request.size_bytes
    return tuple(kept)


def find_golden(evidence: Iterable[Evidence], *, format: str, digest: str) -> Evidence | None:  # our word
    """Return the newest equivalence evidence with golden requests that are about the bytes of a format.

    They are so about both formats that were compared: the source gave the answers, the other one is equivalent.
    """
    for fact in reversed(list(evidence)):
        if fact.kind != EQUIVALENCE or fact.passed is not True or not isinstance(fact.values.get("golden"), Mapping):
            continue
        source = (fact.values.get("source"), fact.values.get("source_digest"))
        if (format, digest) in ((fact.subject, fact.digest), source):
            return fact
    return None


def check_golden(fact: Evidence) -> None:
    """Raise `InvalidInputError` if what a fact says of its golden requests is impossible; one without any is fine."""
    if "golden" in fact.values:
        _allowed_in(fact)
        Reader.of(fact, EQUIVALENCE).text("attachment")


def decode_golden(content: bytes, fact: Evidence) -> GoldenRequests:
    """Read the attachment of a fact that `find_golden` gave.

    Raises:
        IntegrityError: it cannot be read, or holds something else than the fact says.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    reader = Reader.of(fact, EQUIVALENCE)
    where = reader.text("attachment")
    if len(content) > MAX_GOLDEN_BYTES:
        raise IntegrityError(
            "golden requests are too large", where=where, expected=f"at most {MAX_GOLDEN_BYTES} bytes",
            received=f"{len(content)} bytes",
        )  # fmt: skip
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as exc:
        raise IntegrityError("golden requests cannot be read", where=where, received=str(exc)[:200]) from exc
    count, allowed = _allowed_in(fact)
    requests: list[GoldenRequest] = []
    for index in range(count):
        found: dict[str, dict[str, np.ndarray]] = {_INPUT: {}, _OUTPUT: {}}
        for part, arrays in found.items():
            prefix = f"{index}:{part}:"
            arrays.update({key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)})
        requests.append(GoldenRequest(inputs=found[_INPUT], outputs=found[_OUTPUT]))
    held = sum(len(one.inputs) + len(one.outputs) for one in requests)
    if held != len(tensors) or any(not one.inputs or one.outputs.keys() != allowed.keys() for one in requests):
        raise IntegrityError(
            "golden requests are others than their evidence says",
            where=where,
            expected=f"{count} requests with the outputs {', '.join(f'`{name}`' for name in sorted(allowed))}",
            received=f"{len(tensors)} tensors",
        )
    return GoldenRequests(source=reader.text("source"), requests=tuple(requests), allowed=allowed)


def _allowed_in(fact: Evidence) -> tuple[int, dict[str, AllowedDifference]]:
    golden = Reader.of(fact, EQUIVALENCE).table("golden")
    outputs = golden.table("outputs")
    allowed: dict[str, AllowedDifference] = {}
    for name in outputs.values:
        row = outputs.table(name)
        allowed[name] = AllowedDifference(
            absolute=row.finite("absolute", minimum=0),
            relative=row.finite("relative", minimum=0),
            of_largest=row.finite("of_largest", minimum=0),
            disagreement=row.finite("disagreement", minimum=0),
            reason=row.text("reason"),
        )
    count = golden.integer("requests", minimum=1)
    if count > MAX_GOLDEN_REQUESTS or not allowed:
        raise InvalidInputError(
            f"equivalence evidence of `{fact.subject}` has impossible golden requests",
            expected=f"1 to {MAX_GOLDEN_REQUESTS} requests with the tolerance of each output",
            received=f"{count} requests, {len(allowed)} outputs",
        )
    return count, allowed


def _tensors(requests: Iterable[GoldenRequest]) -> Iterable[tuple[str, np.ndarray]]:
    for index, request in enumerate(requests):
        for part, arrays in ((_INPUT, request.inputs), (_OUTPUT, request.outputs)):
            for name, array in arrays.items():
                yield f"{index}:{part}:{name}", array


def _little_endian(array: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(array.shape)
