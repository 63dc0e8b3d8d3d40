"""Texts as they may be kept: what is a secret, or may be one, is masked. Too much is masked rather than too little.

Found are passwords in URLs, tokens of known services, private keys, texts beside words such as `password`, texts that
look drawn at random, and the values of this process's own secret environment variables.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

from noa.database_urls import MASK

_WORDS: Final = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token(?![a-z])|tokens?_?(?:id|key|value)|api[_\-]?key|access[_\-]?key|"
    r"private[_\-]?key|client[_\-]?key|signing[_\-]?key|account[_\-]?key|auth[_\-]?key|encryption[_\-]?key|credential|"
    r"authorization|bearer|connection[_\-]?string|\bdsn\b|\bpw\b)"
)
_NAMES_SECRET: Final = re.compile(_WORDS, re.IGNORECASE)
_SECRET_VARIABLE: Final = re.compile(_WORDS + r"|(?:^|_)(?:KEY|PASS|AUTH|PAT)(?:$|_)", re.IGNORECASE)
_QUOTED: Final = re.compile(r"""("{3}|'{3}|"|')((?:\\.|(?!\1).)+)\1""")
_OPEN_QUOTE: Final = re.compile(r"""("{3}|'{3}|"|')((?:\\.|(?!\1).)+)$""")
_ASSIGNED: Final = re.compile(r"""([:=]\s*)([^\s"'#;,)\]}]+)""")
_REST_OF_NAME: Final = re.compile(r"[\w\-]*")
_OPENS: Final = re.compile(r"[=(\[{:\\,|>]\s*$")
_KNOWN: Final = re.compile(
    r"(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_\-]{16,}"
    r"|xox[abeprs]-[A-Za-z0-9\-]{10,}"
    r"|(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?[A-Za-z0-9_\-]{20,}"
    r"|AIza[0-9A-Za-z_\-]{30,}"
    r"|hf_[A-Za-z0-9]{20,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_\-]{30,}|dop_v1_[a-f0-9]{40,}"
    r"|eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?"  # a JSON web token
)
_BEARER: Final = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=\-]{8,}")
_USER_INFO: Final = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.\-]*://[^\s/@:\"']*:)[^\s\"'<>]+(?=@)")
_QUERY_SECRET: Final = re.compile(
    r"(?i)([?&](?:sig|signature|key|token|password|secret|x-amz-(?:signature|credential|security-token))=)[^&\s\"']+"
)
_RANDOM: Final = re.compile(r"[A-Za-z0-9+/_\-]{24,}={0,2}")
_LEAST_ENTROPY: Final = 4.2  # bits a character; words and names of code have up to 4, base64 drawn at random 4.5
_KEY_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|PGP MESSAGE)[A-Z ]*-----")
_KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]+-----")
_FOLDERS: Final = ("PWD", "OLDPWD")
_LEAST_VALUE: Final = 8
_LINES_AFTER: Final = 3


def own_secrets(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the values of the environment that are secret by their names, the longest first."""
    variables = os.environ if environ is None else environ
    found = {
        value
        for name, value in variables.items()
        if len(value) >= _LEAST_VALUE and name not in _FOLDERS and _SECRET_VARIABLE.search(name)
    }
    return tuple(sorted(found, key=len, reverse=True))


def mask_value(text: str, *, secrets: tuple[str, ...] = ()) -> str:
    """Return one value, e.g. of a parameter, without passwords of URLs, known tokens and the given secrets."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _USER_INFO.sub(rf"\g<before>{MASK}", text)
    text = _QUERY_SECRET.sub(rf"\g<1>{MASK}", text)
    return _BEARER.sub(rf"\g<1>{MASK}", _KNOWN.sub(MASK, text))


class LineMasker:
    """Masks the lines of one file, given in order: a private key, or the text behind `password = (`, takes several.

    `is_code`: only texts in quotes are values; in other files (settings, notes) also words behind `:` or `=`.
    """

    def __init__(self, *, is_code: bool, secrets: tuple[str, ...] = ()) -> None:
        self._is_code = is_code
        self._secrets = secrets
        self._in_key = False
        self._lines_left = 0

    def mask(self, line: str) -> str:
        """Return the next line, without its end, as it may be kept."""
        if self._in_key:
            self._in_key = _KEY_END.search(line) is None
            return MASK
        begin = _KEY_BEGIN.search(line)
        if begin is not None:
            self._in_key = _KEY_END.search(line, begin.end()) is None
            return line[: begin.start()] + MASK
        masked = mask_value(line, secrets=self._secrets)
        word = _NAMES_SECRET.search(masked)
        if word is not None:
            masked = self._mask_behind(masked, word.end())
            self._lines_left = _LINES_AFTER if _OPENS.search(masked) else 0
        elif self._lines_left:
            self._lines_left -= 1
            masked = self._mask_values(masked)
        return _RANDOM.sub(_mask_random, masked)

    def _mask_behind(self, line: str, end: int) -> str:
        """Return a line with what stands behind a telling word masked; the word may be a name or within a text."""
        rest = _REST_OF_NAME.match(line, end)
        end = end if rest is None else rest.end()
        quote = _open_quote(line[:end])
        if quote is None:
            return line[:end] + self._mask_values(line[end:])
        closing = line.find(quote, end)
        if closing < 0:
            return line[:end] + (MASK if line[end:].strip() else line[end:])
        inner = MASK if line[end:closing].strip() else line[end:closing]
        return line[:end] + inner + quote + self._mask_values(line[closing + len(quote) :])

    def _mask_values(self, text: str) -> str:
        masked = _QUOTED.sub(lambda found: f"{found[1]}{MASK}{found[1]}", text)
        masked = _OPEN_QUOTE.sub(lambda found: f"{found[1]}{MASK}" if MASK not in found[2] else found[0], masked)
        return masked if self._is_code else _ASSIGNED.sub(rf"\g<1>{MASK}", masked)


def _open_quote(text: str) -> str | None:
    """Return the quote that is open at the end of a text, None if there is none."""
    quote: str | None = None
    is_escaped = False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif quote is None and character in "\"'":
            quote = character
        elif character == quote:
            quote = None
    return quote


def _mask_random(found: re.Match[str]) -> str:
    text = found[0]
    is_mixed = any(c.isdigit() for c in text) and any(c.islower() for c in text) and any(c.isupper() for c in text)
    return MASK if is_mixed and _entropy(text) >= _LEAST_ENTROPY else text


def _entropy(text: str) -> float:
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
