"""`noa`: parse the command line, run the command, turn every error into one line and an exit code.

Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, TextIO

from noa.errors import NoaError
from noa_cli import _invocation

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `noa` and leave the process with its exit code."""
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    _give_up(sys.stderr)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    invocation = _invocation.begin()
    from noa_cli._app import command
    from noa_cli._completion import mend_bash_words, print_completion

    try:
        if print_completion(arguments):
            return 0
        mend_bash_words(os.environ, invocation)
        result = command()(arguments, prog_name="noa", standalone_mode=True)
    except SystemExit as exc:  # every command ends so
        return _ended(invocation, exc.code)
    except NoaError as exc:
        return _report(invocation, exc, exc)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one, on the way out, ends at once and says nothing
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader went away (`noa ... | head`): keep the interpreter from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        return _report(invocation, exc, _told_of_system(exc))
    except Exception as exc:  # noqa: BLE001 - the last line of defence: people get one line, not a traceback
        remedy = "This is a mistake in noa; run again with --debug and report it"
        return _report(invocation, exc, NoaError(f"unexpected {type(exc).__name__}: {exc}", remedy=remedy))
    return _ended(invocation, result)


def _told_of_system(error: OSError) -> NoaError:
    """Return what the system refused, where, and what to do about it."""
    reason = (error.strerror or str(error)).lower()
    is_full = error.errno in _FULL
    output = _output_file()
    if not error.filename and (_is_of_output(error) or _give_up(sys.stdout)):
        _give_up(sys.stdout)
        return NoaError(
            f"cannot write the output: {reason}",
            where=output,
            remedy="The command itself did what it was to do. Free some space, or send the output elsewhere",
        )
    remedy = "Free some space (or raise the quota) and run the same command again" if is_full else None
    what = f"cannot write: {reason}" if is_full else reason
    return NoaError(what, where=str(error.filename) if error.filename else None, remedy=remedy)


def _give_up(stream: TextIO) -> bool:
    """Tell whether a stream holds text that cannot be written, and drop it: else Python complains again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def _is_of_output(error: OSError) -> bool:
    """Tell whether printing raised an error: a stream names no file, and may have dropped what it could not write."""
    from traceback import walk_tb

    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return bool(names) and (names[-1] == "noa_cli._console" or names[-1].startswith("rich."))


def _output_file() -> str | None:
    """Return which file standard output was sent to, as far as the system tells."""
    try:
        return str(Path("/proc/self/fd", str(sys.stdout.fileno())).readlink())
    except (OSError, ValueError):
        return None


def _ended(invocation: _invocation.Invocation, result: object) -> int:
    code = 0 if result is None else result if isinstance(result, int) else 1
    if code == 0:
        _tell_of_new_folder(invocation)
    return code


def _tell_of_new_folder(invocation: _invocation.Invocation) -> None:
    """Say which folder the command has made; what only reads makes none."""
    folder = invocation.missing_folder
    if folder is not None and folder.exists() and not invocation.as_json:
        sys.stderr.write(f"made {folder}: what noa writes for this project is in it\n")


def _report(invocation: _invocation.Invocation, error: BaseException, told: NoaError) -> int:
    if invocation.debug:
        import traceback

        traceback.print_exception(error)
    if invocation.as_json:
        import json

        sys.stderr.write(json.dumps({**told.to_dict(), "error": type(error).__name__}) + "\n")
    else:
        from noa_cli._refusal import refusal_lines

        _say(*(refusal_lines(told) or [str(told)]))
    return 1


def _say(first: str, *more: str) -> None:
    """Write one line on standard error, and `more` that belong to it; text of others breaks none of them."""
    from noa_cli._console import visible

    line = "\n".join([visible(" ".join(first.split())), *map(visible, more)])
    with suppress(OSError):  # then the exit code has to do
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            sys.stderr.write(f"\033[31merror: {line}\033[0m\n")
        else:
            sys.stderr.write(f"error: {line}\n")


if __name__ == "__main__":
    main()
