"""Reads a Containerfile as far as ours go: instructions, their arguments, and which stage they are in."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

# Source: the Dockerfile reference; ONBUILD, MAINTAINER and SHELL are left out on purpose.
_KNOWN = {
    "FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "ADD", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR", "ARG",
    "STOPSIGNAL", "HEALTHCHECK",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    stage: int
    name: str
    value: str

    @property
    def flags(self) -> dict[str, str]:
        return dict(re.findall(r"(?:^|(?<= ))--([a-z-]+)=(\S+)", self.value))

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.value) if not word.startswith("--")]


def read_containerfile(text: str) -> list[Instruction]:
    stage, found = -1, []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        assert name in _KNOWN, f"no instruction: {line}"
        assert value, line
        stage += name == "FROM"
        assert stage >= 0, "an instruction before FROM"
        if value.startswith("["):
            assert all(isinstance(word, str) for word in json.loads(value))
        elif name != "HEALTHCHECK":
            shlex.split(value)
        found.append(Instruction(stage=stage, name=name, value=value))
    return found
