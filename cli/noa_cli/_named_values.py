"""Options of the form NAME=VALUE: values of inputs (`--bind shape=2,3`) and sizes of axes (`--size seq=128`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from noa.signatures import Signature


def parse_sizes(texts: Sequence[str] | None) -> dict[str, int]:
    """Return the sizes by axis.

    Raises:
        InvalidInputError: one is no NAME=NUMBER with a number above zero.
    """
    from noa.errors import InvalidInputError

    sizes: dict[str, int] = {}
    for text in texts or ():
        name, mark, number = text.partition("=")
        if not mark or not name or not number.isdecimal() or int(number) < 1:
            raise InvalidInputError("a size is not readable", expected="AXIS=NUMBER, e.g. seq=128", received=text)
        sizes[name] = int(number)
    return sizes


def parse_names(texts: Sequence[str] | None) -> dict[str, str]:
    """Return the source's names by the target's.

    Raises:
        InvalidInputError: one is no TARGET=SOURCE, or a name stands twice on one side.
    """
    from noa.errors import InvalidInputError

    names: dict[str, str] = {}
    for text in texts or ():
        theirs, mark, mine = text.partition("=")
        if not mark or not theirs or not mine:
            raise InvalidInputError("a rename is not readable", expected="TARGET=SOURCE, e.g. mul_7=y", received=text)
        if theirs in names:
            raise InvalidInputError(f"`{theirs}` is renamed twice", expected="one name for each", received=text)
        names[theirs] = mine
    return names


def parse_bindings(texts: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Return values by input: numbers with commas between them, one number alone, or `@FILE.npy`.

    Raises:
        InvalidInputError: one is none of these.
    """
    import numpy as np

    from noa.errors import InvalidInputError

    bound: dict[str, np.ndarray] = {}
    for text in texts or ():
        name, mark, value = text.partition("=")
        try:
            if not mark or not name or not value:
                raise ValueError
            if value.startswith("@"):
                bound[name] = np.load(Path(value[1:]), allow_pickle=False)
            elif value in ("true", "false"):
                bound[name] = np.asarray([value == "true"])
            else:
                parts = [part for part in value.split(",") if part]
                bound[name] = np.asarray([int(part) if part.lstrip("-").isdecimal() else float(part) for part in parts])
        except (ValueError, OSError, EOFError) as exc:
            raise InvalidInputError(
                "a bound value is not readable", expected="NAME=2,3 or NAME=@file.npy", received=text
            ) from exc
    return bound


def read_given_inputs(path: Path | None, signature: Signature) -> dict[str, np.ndarray] | None:
    """Return real inputs from a file .npz, .npy or .json in the dtypes of a signature; None if no file is given.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: it is not readable, or does not fit.
    """
    from noa_cli.commands.predict import read_inputs

    return None if path is None else read_inputs(str(path), signature.inputs)
