"""The files of a project that are nobody's data: keys, and what noa itself keeps.

Some are named by the settings, the others by their own names: `ada.key`, `server.pem`, `.env`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from noa.settings import Settings

_NAMES: Final = ("*.key", "*.pem", "*.p12", "*.pfx", ".env*", "id_rsa", "id_ecdsa", "id_ed25519")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateFiles:
    """`keys` are the files that the settings name, `state` is the folder of all that noa writes; without links."""

    keys: frozenset[str]
    state: str

    def is_key(self, path: Path) -> bool:
        """Tell whether a file is a key, or a link to one."""
        target = os.path.realpath(path)
        return _says_so(path.name) or _says_so(target) or target in self.keys

    def is_state(self, path: Path) -> bool:
        """Tell whether a folder is noa's own."""
        return os.path.realpath(path) == self.state

    def are_within(self, folder: Path) -> bool:
        """Tell whether a folder holds any of them, at whatever depth and behind whatever links."""
        left, seen = [os.path.realpath(folder)], set[str]()
        while left:
            here = left.pop()
            if here == self.state:
                return True
            if here in seen:
                continue
            seen.add(here)
            for entry in _entries(here):
                place = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if _says_so(entry.name) or _says_so(place) or place in self.keys:
                    return True
                if entry.is_dir():
                    left.append(place)
        return False


def private_files(settings: Settings) -> PrivateFiles:
    """Return what of a project only its owner's own programs are to read."""
    registry, serving = settings.registry, settings.serving
    named = (
        registry.signing.private_key,
        *registry.signing.trusted_keys,
        *(Path(key) for key in registry.principals.values()),  # one that is no path names no file
        serving.keys_file,
        serving.jwt_jwks_file,
        serving.tls_key,
        serving.tls_certificate,
        serving.tls_client_ca,
        serving.client_ca,
        serving.client_certificate,
        serving.client_certificate_key,
    )
    return PrivateFiles(
        keys=frozenset(os.path.realpath(path) for path in named if path is not None),
        state=os.path.realpath(settings.state_dir),
    )


def _says_so(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return any(fnmatchcase(name, pattern) for pattern in _NAMES)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # who cannot read it finds no key in it
        return
