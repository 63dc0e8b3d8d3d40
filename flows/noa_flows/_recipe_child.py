"""A recipe's own process: `python -m noa_flows._recipe_child`, asked by `recipe_process`.

One JSON line on standard input is a question. Its answer on standard output is a line that begins with the question's
token: what the recipe writes there itself is passed over. What it prints goes to standard error. It ends when its
standard input does, whatever threads the recipe has left.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from noa.errors import NoaError, RecipeError
from noa_flows._recipe_messages import Message, error_to


def main() -> int:
    """Answer until nobody asks any more."""
    # `dup` gives descriptors that no program started by the recipe inherits.
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    process = os.getpid()
    for line in questions:
        message = json.loads(line)
        answer = _answer(message["step"], message["values"])
        if os.getpid() != process:  # the recipe forked and came back twice: one answer is enough
            os._exit(0)
        answers.write(f"\n{message['token']} {json.dumps(answer)}\n")  # the first newline ends what is no answer
        answers.flush()
    return 0


def _answer(step: str, values: Message) -> Message:
    # Only now: it imports numpy, and a plan needs no more than the recipe.
    from noa_flows._recipe_steps import STEPS

    try:
        return {"value": STEPS[step](values)}
    except NoaError as exc:
        if exc.__cause__ is not None:
            _print_traceback()
        return {"error": error_to(exc)}
    except (Exception, SystemExit) as exc:  # noqa: BLE001  # the user's code may raise anything
        _print_traceback()
        return {"error": error_to(_recipe_error(exc, step))}


def _print_traceback() -> None:
    with suppress(Exception):  # the user's exception may not print, its code may have closed the stream
        traceback.print_exc()
        sys.stderr.flush()


def _recipe_error(exc: BaseException, step: str) -> NoaError:
    from noa_training.loading import describe_exception, user_location

    where = user_location(exc, root=Path.cwd())
    return RecipeError(f"the recipe failed in the step `{step}`: {describe_exception(exc)}", where=where)


if __name__ == "__main__":
    status = main()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)
