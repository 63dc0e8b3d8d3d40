"""What can be set of endpoints: which versions answer, arms and their verdicts, kept answers, streams, pipelines."""

from __future__ import annotations

import math
import re
from typing import Literal, Self

from pydantic import (
    Field,
    StrictFloat,
    StrictInt,
    model_validator,
)

from noa.errors import InvalidInputError
from noa.references import parse_reference
from noa.settings.section import (
    Alias,
    Name,
    Section,
)
from noa.settings.streams import StreamSettings

MAIN_ARM = "main"
"""What the version of an endpoint's own rule is called among its arms."""
FALLBACK_ARM = "fallback"
_RESERVED_ARMS = frozenset({MAIN_ARM, FALLBACK_ARM})
_SHARE_ROUNDING = 1e-9  # three times 1/3 written in decimals
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_MEAN = re.compile(r"mean\((.*)\)")
_KEY_HEADERS = frozenset({"authorization", "x-api-key"})


CompareWay = Literal["argmax", "equal", "tolerance", "ignore"]


class VerdictSettings(Section):
    """When a shadow has shown enough, and what is done then."""

    decide: Literal["act", "tell"] = Field(
        default="tell",
        description="`act`: a verdict moves the aliases, through the gates; `tell`: it is told and kept as evidence.",
    )
    min_agreement: StrictFloat = Field(
        default=0.99, ge=0, lt=1, description="Least share of the requests in which both must say the same."
    )
    max_extra_errors: StrictFloat = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Largest share of the requests that the present version answered and the shadow could not.",
    )
    max_latency_ratio: StrictFloat = Field(
        default=1.5,
        ge=0,
        description="Largest median of the shadow's time divided by the present version's, for the same requests; 0: "
        "latency is not judged.",
    )
    error: StrictFloat = Field(
        default=0.01,
        ge=1e-9,
        le=0.2,
        description="How probable a wrong verdict may be at most, however often it is looked at.",
    )
    min_requests: StrictInt = Field(
        default=500, ge=1, description="A shadow that was compared for fewer requests is not promoted."
    )
    compare: dict[str, CompareWay] = Field(
        default={},
        description="How outputs are compared, by name: `argmax` (same class), `equal`, `tolerance`, `ignore`. Others: "
        "by name and dtype.",
    )
    absolute_tolerance: StrictFloat | None = Field(
        default=None, ge=0, description="Largest absolute difference of floats that agree; unset: that of the dtype."
    )
    relative_tolerance: StrictFloat | None = Field(
        default=None, ge=0, description="As `absolute_tolerance`, relative to the present version's value."
    )


class ArmSettings(Section):
    """Another version behind an endpoint: it answers a share of the requests, or computes copies of them."""

    model: str = Field(
        description="Which model: `name@alias` or `name/number`. While the alias points nowhere, or to what the "
        "endpoint serves anyway, the arm takes no requests."
    )
    format: str = Field(default="", description="Which format of the version computes; empty: the endpoint's.")
    share: StrictFloat = Field(ge=0, le=1, description="Share of the endpoint's requests that this arm takes.")
    mode: Literal["answer", "shadow"] = Field(
        default="answer",
        description="`answer`: it answers its share; `shadow`: it computes copies of its share, and nobody gets these "
        "answers.",
    )
    verdict: VerdictSettings = Field(
        default_factory=VerdictSettings, description="When a shadow is promoted or taken away, and who does it."
    )

    @model_validator(mode="after")
    def _names_a_version(self) -> Self:
        _require_version(self.model)
        if self.mode == "answer" and self.verdict != VerdictSettings():
            raise ValueError("`verdict` is about shadows: it compares answers to the same requests")
        return self


class CacheSettings(Section):
    """Answers of an endpoint that are kept for the same inputs, until its version changes."""

    max_bytes: StrictInt = Field(
        default=64 << 20, ge=4096, description="Bytes that the kept answers of one worker may take."
    )
    max_age_s: StrictFloat | None = Field(
        default=None, gt=0, description="After how long an answer is computed anew; none: when the version changes."
    )


class RollbackSettings(Section):
    """When an endpoint goes back by itself to the version before. Off unless one of the limits is set."""

    max_error_rate: StrictFloat | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of the requests that may fail in the model beyond the share of the version before.",
    )
    max_latency_ratio: StrictFloat | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="How many times the p99 of the version before the p99 of the new one may be.",
    )
    within_s: StrictFloat = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="How long after a swap the new version is judged, and the one before it kept in memory, seconds.",
    )
    min_requests: StrictInt = Field(
        default=200, ge=1, description="Requests of one worker that are enough to judge a version by."
    )

    @property
    def is_on(self) -> bool:
        """Whether there is a limit."""
        return self.max_error_rate is not None or self.max_latency_ratio is not None


class EndpointSettings(Section):
    """A name that clients call, and what answers."""

    model: str = Field(description="Which model answers: `name@alias` or `name/number`.")
    format: str = Field(
        default="onnx",
        description="Which format of the version computes; `auto`: the fastest one that is proven to compute the same.",
    )
    arms: dict[Alias, ArmSettings] = Field(
        default={},
        description="Other versions by name that take a share of the requests: a canary, an A/B test, a shadow.",
    )
    sticky: str = Field(
        default="",
        description="What keeps a client on its arm: the name of a header such as `x-user-id`, or `key` for the name "
        "of its API key. Empty, or where a request lacks it: each request is drawn by itself.",
    )
    fallback: str = Field(
        default="",
        description="Which model answers when the version that should cannot: nothing is loaded, it failed, or its "
        "queue is too long. `name@alias` or `name/number`; empty: the error is answered.",
    )
    cache: CacheSettings | None = Field(
        default=None, description="Keep answers for the same inputs; only for models without randomness or state."
    )
    rollback: RollbackSettings = Field(default_factory=RollbackSettings)
    stream: StreamSettings = Field(default_factory=StreamSettings)

    @model_validator(mode="after")
    def _streams_alone(self) -> Self:
        if not self.stream.is_on:
            return self
        if self.cache is not None:
            raise ValueError("`cache` keeps whole answers, and a stream has none; leave out `cache` or `stream`")
        if self.fallback:
            raise ValueError("`fallback` cannot go on with the stream of another version; leave out one of them")
        for name, arm in self.arms.items():
            if arm.mode == "shadow":
                raise ValueError(f"arm `{name}` is a shadow, which compares whole answers, and a stream has none")
        return self

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        _require_version(self.model)
        if self.fallback:
            _require_version(self.fallback)
        if reserved := _RESERVED_ARMS & self.arms.keys():
            raise ValueError(f"an arm cannot be called `{min(reserved)}`; choose another name for it")
        total = math.fsum(arm.share for arm in self.arms.values() if arm.mode == "answer")
        if total > 1.0 + _SHARE_ROUNDING:
            raise ValueError(f"the shares of the arms that answer add up to {total:g}; at most 1 can be given away")
        if self.sticky and not _HEADER_NAME.fullmatch(self.sticky):
            raise ValueError(f"`sticky` is `{self.sticky}`, which is no header's name; write e.g. `x-user-id` or `key`")
        if self.sticky.lower() in _KEY_HEADERS:
            raise ValueError("`sticky` names a header of keys; write `key`, for the name of the key")
        if self.sticky and all(arm.mode != "answer" for arm in self.arms.values()):
            raise ValueError("`sticky` keeps clients on arms that answer, and there is none; leave it out")
        if self.fallback == self.model:
            raise ValueError(f"`fallback` is `{self.fallback}`, which the endpoint serves anyway; name another version")
        for name, arm in self.arms.items():
            if arm.model == self.model:
                raise ValueError(f"arm `{name}` is `{arm.model}`, which the endpoint serves anyway; name another alias")
            if arm.mode == "shadow" and arm.share == 0:
                raise ValueError(f"arm `{name}` is a shadow of no request; give it a `share` above 0, or leave it out")
        if self.rollback.is_on and parse_reference(self.model).alias is None:
            raise ValueError(
                f"`{self.model}` never moves, so nothing rolls it back; name an alias, or leave out `rollback`"
            )
        return self


class PipelineStepSettings(Section):
    """One endpoint in a pipeline."""

    name: Alias = Field(description="What the step is called in this pipeline.")
    endpoint: Name = Field(description="Which endpoint computes it.")
    inputs: dict[str, str] = Field(
        default={},
        description="Where its inputs come from: the name of an input of the request, or `step.output` of a step "
        "before it. One that is left out is an input of the request with the same name.",
    )


class PipelineSettings(Section):
    """A name that clients call, and which computes with several endpoints one after another."""

    steps: tuple[PipelineStepSettings, ...] = Field(
        min_length=1, max_length=32, description="The steps, in the order in which they are computed."
    )
    outputs: dict[str, str] = Field(
        min_length=1, description="What is answered: `step.output`, or `mean(step.output, ...)` of several."
    )

    @property
    def endpoints(self) -> frozenset[str]:
        """The endpoints that it computes with."""
        return frozenset(step.endpoint for step in self.steps)

    @property
    def shown(self) -> str:
        """The endpoints in their order, for people: `encoder > head`."""
        return " > ".join(dict.fromkeys(step.endpoint for step in self.steps))

    @model_validator(mode="after")
    def _is_a_graph(self) -> Self:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError(f"two steps are called `{next(one for one in names if names.count(one) > 1)}`")
        for index, step in enumerate(self.steps):
            for source in step.inputs.values():
                taken = source.partition(".")[0]
                if "." in source and taken in names[index:]:
                    raise ValueError(f"step `{step.name}` takes `{source}`, which is not computed before it")
        for name, text in self.outputs.items():
            for source in mean_of(text):
                step, dot, output = source.partition(".")
                if not (dot and output and step in names):
                    raise ValueError(
                        f"output `{name}` is `{text}`; write `step.output` or `mean(step.output, ...)` with the steps "
                        + ", ".join(f"`{one}`" for one in names)
                    )
        return self


def mean_of(text: str) -> list[str]:
    """Return what an output of a pipeline is the mean of: the parts of `mean(a, b)`, else the text itself."""
    found = _MEAN.fullmatch(text.strip())
    return [one.strip() for one in found[1].split(",")] if found else [text.strip()]


def _require_version(model: str) -> None:
    try:
        reference = parse_reference(model)
    except InvalidInputError as exc:
        raise ValueError(str(exc)) from exc
    if reference.alias is None and reference.number is None:
        raise ValueError(f"`{model}` names no version; write `{model}@champion` or `{model}/1`")
