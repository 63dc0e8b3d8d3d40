"""What differs from the commit, as a patch that may be kept: bounded in size, and without secrets.

Files whose names say that they hold secrets are left out, and what may be one is masked in the others
(`secret_masking.py`); the patch says so at its top. `GitState.diff_digest` names the differences as they really were.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from noa.database_urls import MASK
from noa_training.git_state import GitState
from noa_training.secret_masking import LineMasker, own_secrets

MOST_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 20.0
_LONGEST_LINE: Final = 10_000
_CODE: Final = frozenset({".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".rs", ".go", ".js", ".ts"})
_SECRET_FILES: Final = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.gpg",
    "*.asc", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pypirc", ".npmrc", ".pgpass",
    ".htpasswd", "htpasswd", ".git-credentials", ".dockercfg", ".dockerconfigjson", "kubeconfig", "*.tfstate",
    "*.tfvars", "*secret*", "*credential*", "*password*", "service-account*.json", "service_account*.json",
)  # fmt: skip
"""Names of files, in capitals too, of which nothing is kept."""


def read_git_diff(root: Path, state: GitState, *, most_bytes: int = MOST_BYTES) -> str | None:
    """Return the patch from the commit to what is there, None if nothing differs or git does not answer.

    Python files that were never added are in it as new ones, binary files by their names alone.
    """
    if state.diff_digest is None:
        return None
    excluded = [f":(top,exclude,glob,icase)**/{name}" for name in _SECRET_FILES]
    options = ["--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--no-renames", "--src-prefix=a/"]
    command = ["git", "-C", str(root), "-c", "core.quotepath=false", "diff", "HEAD", *options, "--dst-prefix=b/"]
    try:
        diff = _read_up_to([*command, "--", ":/", *excluded], most_bytes + 1)
    except OSError:
        return None
    text = diff.decode("utf-8", "replace")
    lines = [*_masked(text.split("\n")[: None if len(diff) <= most_bytes else -1]), *_new_files(root, state)]
    kept, is_cut = _cut(lines, most_bytes)
    is_cut = is_cut or len(diff) > most_bytes
    return "\n".join([*_remarks(kept, is_cut=is_cut, most_bytes=most_bytes), *kept]) + "\n"


def is_secret_file(path: str) -> bool:
    """Tell whether a file's name says that it holds secrets."""
    name = PurePosixPath(path.lower()).name
    return any(PurePosixPath(name).match(pattern) for pattern in _SECRET_FILES)


def _remarks(lines: Sequence[str], *, is_cut: bool, most_bytes: int) -> list[str]:
    """Return lines that say what the patch is not; programs that apply patches skip them."""
    found = ["# Files that may hold secrets are left out of this patch."]
    if any(MASK in line for line in lines):
        found.append(f"# What may be a secret is masked as {MASK}.")
    if is_cut:
        found.append(f"# It is cut off after {most_bytes} bytes.")
    return found


def _masked(lines: Sequence[str]) -> Iterator[str]:
    secrets = own_secrets()
    masker = LineMasker(is_code=False, secrets=secrets)
    is_body = False
    for line in lines:
        if line.startswith("diff --git "):
            is_body = False
            masker = LineMasker(is_code=PurePosixPath(line.rpartition(" b/")[2]).suffix in _CODE, secrets=secrets)
        is_body = is_body or line.startswith("@@")
        if is_body and line.startswith("@@"):  # behind it git shows the beginning of the function
            place, mark, heading = line[2:].partition("@@")
            yield f"@@{place}{mark}{masker.mask(heading[:_LONGEST_LINE])}"
        elif not is_body or not line or line.startswith("\\"):
            yield line[:_LONGEST_LINE]
        else:
            yield line[0] + masker.mask(line[1 : 1 + _LONGEST_LINE])


def _new_files(root: Path, state: GitState) -> Iterator[str]:
    secrets = own_secrets()
    for name in state.untracked:
        path = f"{state.path}/{name}" if state.path else name
        if is_secret_file(path):
            continue
        try:
            with (root / name).open(encoding="utf-8", errors="replace") as file:
                text = file.read(MOST_BYTES)
        except OSError:
            continue
        masker = LineMasker(is_code=True, secrets=secrets)
        lines = text.split("\n")
        has_end = lines[-1] == ""
        lines = lines[:-1] if has_end else lines
        yield f"diff --git a/{path} b/{path}"
        yield "new file mode 100644"
        if lines:
            yield "--- /dev/null"
            yield f"+++ b/{path}"
            yield f"@@ -0,0 +1,{len(lines)} @@"
            yield from (f"+{masker.mask(line[:_LONGEST_LINE])}" for line in lines)
            if not has_end:
                yield "\\ No newline at end of file"


def _cut(lines: Sequence[str], most_bytes: int) -> tuple[list[str], bool]:
    kept: list[str] = []
    left = most_bytes
    for line in lines:
        left -= len(line.encode("utf-8", "replace")) + 1
        if left < 0:
            return kept, True
        kept.append(line)
    while kept and not kept[-1]:
        kept.pop()
    return kept, False


def _read_up_to(command: Sequence[str], most_bytes: int) -> bytes:
    """Return what a command prints, up to so many bytes and for so long; it is ended then."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        watch = threading.Timer(_TIMEOUT_S, process.kill)
        watch.start()
        try:
            return process.stdout.read(most_bytes)
        finally:
            process.kill()
            watch.cancel()
