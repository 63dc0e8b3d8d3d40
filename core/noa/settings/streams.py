"""What can be set of an endpoint whose model is called step by step, and how its texts are read.

`feeds` says what an input of the next step is: the name of an output, or `append(output)`, `append(output, axis)` for
what grows. One `*` in an input's name stands for any text, the same in the output's: `"past.*" = "present.*"`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from noa.settings.section import Section

StopValue = StrictBool | StrictInt | StrictFloat | StrictStr

_APPEND = re.compile(r"append\((.*?)(?:,\s*(\d{1,2})\s*)?\)", re.DOTALL)
_ANY = "*"


class Feed(NamedTuple):
    """What an input of the next step is made of: an output in its place, or behind it along an axis.

    `axis` is None where the settings leave it to the signature.
    """

    output: str
    appends: bool = False
    axis: int | None = None


class StopSettings(Section):
    """When a stream ends by what its model gives. Off unless an output is named."""

    output: str = Field(
        default="", description="The output that is looked at after each step; the event of that step is still sent."
    )
    equals: StopValue | tuple[StopValue, ...] | None = Field(
        default=None,
        description="The value that all elements of the output must have, or several of which each must have one; "
        "unset for an output of booleans, which must all be true.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.equals is not None and not self.output:
            raise ValueError("`equals` says nothing without `output`, the output that is looked at")
        if self.equals == ():
            raise ValueError("`equals` is an empty list, which nothing equals; name a value, or leave it out")
        return self

    @property
    def values(self) -> tuple[bool | int | float | str, ...]:
        """The values that end it; none for an output of booleans."""
        if self.equals is None:
            return ()
        return self.equals if isinstance(self.equals, tuple) else (self.equals,)


class StreamSettings(Section):
    """A model that is called step by step, each step with what the one before gave. Off unless it feeds something."""

    feeds: dict[str, str] = Field(
        default={},
        description="What the inputs of the next step are, by name: an output, or `append(output, axis)` for an input "
        "that grows by it. Inputs that are not named stay as the request gave them.",
    )
    initial_zeros: tuple[str, ...] = Field(
        default=(),
        description="Fed inputs that a request may leave out: they begin as zeros, and empty along free axes that no "
        "given input has.",
    )
    emits: tuple[str, ...] = Field(
        default=(),
        description="Outputs that each event carries; empty: all that do not merely take the place of an input.",
    )
    stop: StopSettings = Field(default_factory=StopSettings)
    max_steps: StrictInt = Field(
        default=256, ge=1, le=1_000_000, description="Steps of one stream at most; a request may ask for fewer."
    )
    max_streams: StrictInt = Field(
        default=16, ge=1, description="Streams of one worker at the same time; more get 503 and Retry-After."
    )
    max_bytes: StrictInt = Field(
        default=64 << 20,
        ge=1024,
        description="Bytes that the inputs of one step of a stream may take; one that grows beyond it ends.",
    )

    @property
    def is_on(self) -> bool:
        """Whether the endpoint streams."""
        return bool(self.feeds)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not self.feeds:
            if self != type(self).model_construct():
                raise ValueError("`stream` feeds nothing back; name in `feeds` what the next step is made of")
            return self
        for name, text in self.feeds.items():
            output = parse_feed(text).output
            if not name or not output:
                raise ValueError(f'`feeds` has `{name}` = `{text}`; write e.g. `tokens = "append(next, 1)"`')
            if (name.count(_ANY), output.count(_ANY)) not in ((0, 0), (1, 1)):
                raise ValueError(f"`feeds` has `{name}` = `{text}`; one `{_ANY}` must stand on both sides, or on none")
        for key, names in (("initial_zeros", self.initial_zeros), ("emits", self.emits)):
            if len(set(names)) != len(names):
                raise ValueError(f"`{key}` names `{next(one for one in names if names.count(one) > 1)}` twice")
        return self


def parse_feed(text: str) -> Feed:
    """Return what a text of `feeds` says. A tensor's name that looks like `append(...)` cannot be named."""
    found = _APPEND.fullmatch(text.strip())
    if found is None:
        return Feed(text.strip())
    return Feed(found[1].strip(), True, None if found[2] is None else int(found[2]))
