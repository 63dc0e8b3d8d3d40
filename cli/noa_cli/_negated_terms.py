"""A command line on which `-is:live` is a term of a search and `-C folder` an option.

The parser takes every word that begins with `-` for options of one letter each. `TermsCommand` tells the two apart and
hands the parser the options first and then, after `--`, all that is no option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand


class TermsCommand(TyperCommand):
    """A command whose arguments may begin with `-`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # the type is private in typer
        """Read the command line, negated terms among it."""
        takes = {
            flag: parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
            for parameter in self.get_params(ctx)
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag.startswith("-")
        }
        return super().parse_args(ctx, terms_last(args, takes))


def terms_last(words: Sequence[str], takes: Mapping[str, bool]) -> list[str]:
    """Return a command line with its options first and then, after `--`, the rest.

    `takes` tells of each flag whether a value follows it.

    Raises:
        BadParameter: a word is an option that was written with one `-` instead of two.
    """
    options: list[str] = []
    terms: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            terms += left
        elif not word.startswith("-") or word == "-" or _is_term(word, takes):
            terms.append(word)
        else:
            options.append(word)
            if takes.get(word, False):
                options += [value for value in (next(left, None),) if value is not None]
    return [*options, "--", *terms] if terms else options


def _is_term(word: str, takes: Mapping[str, bool]) -> bool:
    if word.startswith("--") or len(word) <= len("-x"):
        return False
    meant = f"-{word.partition('=')[0]}"
    if meant in takes:
        raise BadParameter(f"`{word}` is written with two dashes as an option (`-{word}`), and after `--` as a term")
    flag, value = word[:2], word[2:]
    return not (flag in takes and takes[flag] and (flag != "-o" or "=" in value))  # `-Cfolder`, `-okey=value`
