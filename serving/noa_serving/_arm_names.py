"""What endpoints and their arms are called inside, where each follows its own reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from noa.settings import FALLBACK_ARM

if TYPE_CHECKING:
    from noa.settings import EndpointSettings


def inner_name(endpoint: str, arm: str) -> str:
    """Return the name of an arm inside, which no endpoint can have."""
    return f"{endpoint}~{arm}"


def is_inner(name: str) -> bool:
    """Tell whether a name is that of an arm inside, or of a fallback."""
    return "~" in name


def followed_names(rules: Mapping[str, EndpointSettings]) -> list[str]:
    """Return the names of all that follow the registry: endpoints, their arms and fallbacks."""
    return [name for endpoint, rule in rules.items() for name in _names(endpoint, rule)]


def _names(endpoint: str, rule: EndpointSettings) -> Iterator[str]:
    yield endpoint
    yield from (inner_name(endpoint, arm) for arm in rule.arms)
    if rule.fallback:
        yield inner_name(endpoint, FALLBACK_ARM)
