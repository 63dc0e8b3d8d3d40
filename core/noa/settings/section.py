"""What all settings share: their base, names that are checked, and addresses."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
)

from noa.errors import InvalidInputError
from noa.references import check_alias, check_name


def _name(text: str) -> str:
    return _checked(check_name, text)


def _alias(text: str) -> str:
    return _checked(check_alias, text)


def _checked(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except InvalidInputError as exc:  # pydantic collects ValueError only
        raise ValueError(str(exc)) from exc


Name = Annotated[str, AfterValidator(_name)]
Alias = Annotated[str, AfterValidator(_alias)]
Port = Annotated[StrictInt, Field(ge=0, le=65535)]


class Section(BaseModel):
    """Base of all settings: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def is_web_address(text: str) -> bool:
    """Tell whether a text is the address of a server, with neither user, query nor fragment."""
    try:
        parts = urlsplit(text)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    has_extras = "@" in parts.netloc or bool(parts.query) or bool(parts.fragment)  # keys belong into no address
    return is_whole and not has_extras and text.isascii() and text.isprintable() and " " not in text


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def absolute(path: Path, root: Path) -> Path:
    """Return a path as it is against `root`."""
    return Path(path).expanduser() if Path(path).expanduser().is_absolute() else root / path


def require_loopback(section: SectionT, host: str, key: str) -> SectionT:
    """Return a section whose server listens on loopback only.

    Raises:
        ValueError: it would listen for others.
    """
    if not is_loopback(host):
        raise ValueError(f"`{key}` is `{host}`; this server has no authentication and listens on loopback only")
    return section
