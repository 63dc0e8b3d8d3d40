"""How the requests of one endpoint are split between its main version and its arms.

Each arm is an `Endpoint` of its own inside (`digits~candidate`), which nobody can call and which follows its own
reference with all that endpoints do. It takes requests while it serves another digest than the main version with the
same signature. Which version answers a request is drawn from a hash of the endpoint's name and of what keeps the client
on its arm, so every worker of every replica draws the same, also after a restart.

    traffic = attach_arms(main)
    generation = traffic.choose(headers, who="")
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from noa.settings import FALLBACK_ARM, MAIN_ARM, RollbackSettings
from noa_serving._arm_names import inner_name
from noa_serving._endpoint import Endpoint

if TYPE_CHECKING:
    from noa.settings import ArmSettings, EndpointSettings
    from noa.signatures import Signature, TensorSpec
    from noa_serving._crew import Crew
    from noa_serving._generation import Generation
    from noa_serving._http import Headers
    from noa_serving._runtimes import Runtimes

log = logging.getLogger("noa.serving")

_WHOLE = 1 << 64
_BY_KEY = "key"
_MAX_DRAWN = 4096
_MAX_DRAWN_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arm:
    """One arm by the name that people gave it."""

    name: str
    settings: ArmSettings
    endpoint: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What was found when the generations were last compared. `takes` are the ranges of the hash that arms have."""

    main: Generation | None
    arms: tuple[tuple[Endpoint, Generation | None], ...]
    usable: Mapping[str, Generation]
    takes: tuple[tuple[int, int, Generation], ...]
    problems: Mapping[str, str]


class Traffic:
    """The arms of one endpoint, those that only compute copies (`shadow`) among them, and its fallback.

    `look` may be called in any thread, everything else belongs to the event loop.
    """

    def __init__(self, main: Endpoint, arms: Sequence[Arm], fallback: Endpoint | None) -> None:
        self.main = main
        self.arms = tuple(arms)
        self.fallback = fallback
        sticky = main.settings.sticky.lower()
        self._is_by_key = sticky == _BY_KEY
        self._header = b"" if self._is_by_key else sticky.encode()
        self._salt = main.name.encode() + b"\0"
        self._ranges = share_ranges([one.settings.share for one in self.arms if one.settings.mode == "answer"])
        self.fallbacks: dict[tuple[str, str], int] = {}
        """How many requests the fallback took, by the arm that could not answer, and why."""
        self._drawn: dict[bytes, int] = {}
        self._lock = threading.Lock()
        self._view = _View(main=None, arms=(), usable={}, takes=(), problems={})
        self.look()

    @property
    def shadows(self) -> tuple[Arm, ...]:
        """The arms that only compute copies."""
        return tuple(one for one in self.arms if one.settings.mode == "shadow")

    @property
    def answering_names(self) -> list[str]:
        """The names under which answers are counted: the main version, the arms that answer, the fallback."""
        arms = [one.name for one in self.arms if one.settings.mode == "answer"]
        return [MAIN_ARM, *arms, *([] if self.fallback is None else [FALLBACK_ARM])]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints inside: of all arms, and of the fallback."""
        return (*(one.endpoint for one in self.arms), *(() if self.fallback is None else (self.fallback,)))

    def choose(self, headers: Headers, who: str) -> Generation | None:
        """Return the version of the arm that a request is for, None if it is for the main version.

        `who` is the name of the caller's key.
        """
        view = self._present()
        if not view.takes:
            return None
        place = self._draw(headers, who)
        for low, high, generation in view.takes:
            if low <= place < high:
                return generation
        return None

    def find(self, number: int) -> Generation | None:
        """Return the version `number` that an answering arm serves, or None."""
        return next((one for one in self.answering() if one.number == number), None)

    def answering(self) -> list[Generation]:
        """Return the versions of the arms that answer, or that a path may ask for, in the order of the settings."""
        usable = self._present().usable
        names = [one.name for one in self.arms if one.settings.mode == "answer"]
        return [usable[name] for name in names if name in usable]

    def generation_of(self, arm: str) -> Generation | None:
        """Return what an arm or the fallback (`FALLBACK_ARM`) may compute with now, None if it takes no requests."""
        return self._present().usable.get(arm)

    def problem_of(self, arm: str) -> str | None:
        """Return why a version that an arm has loaded takes no requests, or None."""
        return self._present().problems.get(arm)

    def count_fallback(self, arm: str, reason: str) -> None:
        """Count a request that the fallback took, because an arm (`MAIN_ARM`: the main version) could not answer."""
        key = arm, reason
        self.fallbacks[key] = self.fallbacks.get(key, 0) + 1

    def look(self) -> None:
        """Compare the versions that are loaded now, and let go of those that are not any more."""
        with self._lock:
            before, self._view = self._view.problems, self._compare()
            for name, problem in self._view.problems.items():
                if before.get(name) != problem:
                    log.error("endpoint %s: arm %s takes no requests: %s", self.main.name, name, problem)

    def _present(self) -> _View:
        view = self._view
        if view.main is self.main.current:
            for endpoint, seen in view.arms:
                if endpoint.current is not seen:
                    break
            else:
                return view
        self.look()
        return self._view

    def _compare(self) -> _View:
        main = self.main.current
        usable: dict[str, Generation] = {}
        problems: dict[str, str] = {}
        takes: list[tuple[int, int, Generation]] = []
        seen = tuple((endpoint, endpoint.current) for endpoint in self.endpoints)
        ranges = iter(self._ranges)
        for endpoint, generation in seen:
            mode = next((one.settings.mode for one in self.arms if one.endpoint is endpoint), "fallback")
            low, high = next(ranges) if mode == "answer" else (0, 0)
            if generation is None or (main is None and mode != "fallback"):
                continue
            if mode != "fallback" and main is not None and main.digest == generation.digest:
                continue
            problem = None if main is None else signature_difference(main.signature, generation.signature)
            if problem is not None:
                problems[endpoint.arm] = f"`{generation.reference}` does not fit the endpoint: {problem}"
                continue
            usable[endpoint.arm] = generation
            if low < high:
                takes.append((low, high, generation))
        return _View(main=main, arms=seen, usable=usable, takes=tuple(takes), problems=problems)

    def _draw(self, headers: Headers, who: str) -> int:
        value = who.encode() if self._is_by_key else headers.get(self._header, b"") if self._header else b""
        if not value:
            return random.getrandbits(64)
        place = self._drawn.get(value)
        if place is None:
            place = place_of(self._salt, value)
            if len(value) <= _MAX_DRAWN_BYTES:
                if len(self._drawn) >= _MAX_DRAWN:
                    self._drawn.clear()
                self._drawn[value] = place
        return place


def attach_arms(main: Endpoint) -> tuple[Endpoint, ...]:
    """Give an endpoint the arms of its settings; returns it and all that follow the registry for it, itself first."""
    settings = main.settings
    if not settings.arms and not settings.fallback:
        return (main,)
    arms = [
        Arm(name=name, settings=one, endpoint=_inner(main, name, one.model, one.format))
        for name, one in settings.arms.items()
    ]
    fallback = _inner(main, FALLBACK_ARM, settings.fallback, "") if settings.fallback else None
    main.traffic = Traffic(main, arms, fallback)
    return (main, *main.traffic.endpoints)


def make_endpoints(
    rules: Mapping[str, EndpointSettings],
    *,
    threads: int,
    crew: Crew | None = None,
    runtimes: Runtimes | None = None,
) -> list[Endpoint]:
    """Return the endpoints that clients call, each with its arms."""
    found = [Endpoint(name, one, threads=threads, crew=crew, runtimes=runtimes) for name, one in rules.items()]
    for one in found:
        attach_arms(one)
    return found


def with_arms(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return endpoints, each followed by those of its arms: all that follow the registry."""
    return [inner for one in endpoints for inner in (one, *(() if one.traffic is None else one.traffic.endpoints))]


def place_of(salt: bytes, value: bytes) -> int:
    """Return where in 0 to 2^64 a client is, the same in every process."""
    return int.from_bytes(blake2b(salt + value, digest_size=8).digest())


def share_ranges(shares: Sequence[float]) -> list[tuple[int, int]]:
    """Return the range of each arm. They grow from both ends in turn, so that two arms never push each other.

    Whoever is in the range of an arm stays there when its share is raised.
    """
    ranges: list[tuple[int, int]] = []
    low, high = 0, _WHOLE
    for index, share in enumerate(shares):
        size = min(round(share * _WHOLE), high - low)
        if index % 2 == 0:
            ranges.append((low, low + size))
            low += size
        else:
            ranges.append((high - size, high))
            high -= size
    return ranges


def signature_difference(main: Signature, other: Signature) -> str | None:
    """Return by name what a request would notice if `other` answered in place of `main`, None if nothing.

    Free axes may have other names.
    """
    ours, theirs = _tensors(main), _tensors(other)
    for (kind, name), (spec, shape) in ours.items():
        if (kind, name) not in theirs:
            return f"{kind} `{name}` is missing"
        other_spec, other_shape = theirs[kind, name]
        if (spec.dtype, shape) != (other_spec.dtype, other_shape):
            return f"{kind} `{name}` is {other_spec.describe()}, the endpoint's is {spec.describe()}"
    for kind, name in theirs:
        if (kind, name) not in ours:
            return f"{kind} `{name}` is not one of the endpoint's"
    return None if list(ours) == list(theirs) else "its tensors are in another order"


def _tensors(signature: Signature) -> dict[tuple[str, str], tuple[TensorSpec, tuple[int | str, ...]]]:
    """Return the tensors by kind and name, with their shapes, in which free axes are numbered as they come."""
    axes: dict[str, str] = {}
    return {
        (kind, spec.name): (
            spec,
            tuple(size if isinstance(size, int) else axes.setdefault(size, f"axis {len(axes)}") for size in spec.shape),
        )
        for kind, specs in (("input", signature.inputs), ("output", signature.outputs))
        for spec in specs
    }


def _inner(main: Endpoint, arm: str, model: str, format: str) -> Endpoint:  # our word
    own = {"model": model, "arms": {}, "sticky": "", "fallback": "", "rollback": RollbackSettings()}
    settings = main.settings.model_copy(update={**own, "format": format or main.settings.format})
    name = inner_name(main.name, arm)
    return Endpoint(name, settings, threads=main.threads, crew=main.crew, runtimes=main.runtimes, main=main, arm=arm)
