"""What needs the user's recipe but no training, in a process of its own: `python -m noa_flows._recipe_child ...`.

`data REQUEST.json` prints the digests of the recipe's data; `metrics REQUEST.json FORMAT FOLDER` prints the metrics of
a format on its test split. One JSON line on standard output; what the recipe prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import get_args

from noa.errors import NoaError


def main(arguments: list[str]) -> int:
    """Answer one question about a request and return the exit code."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        value = _answer(arguments)
    except NoaError as exc:
        answer.write(json.dumps({"error": exc.to_dict()}) + "\n")
        answer.close()
        return 1
    answer.write(json.dumps({"value": value}, allow_nan=True) + "\n")
    answer.close()
    return 0


def _answer(arguments: list[str]) -> dict[str, object]:
    from noa_conversion import load_format
    from noa_training import JobRequest, SplitName, evaluate, load_dataset, recipe_of

    what, file, *rest = arguments
    request = JobRequest.from_json(Path(file).read_text(encoding="utf-8"))
    recipe = recipe_of(request)
    dataset = load_dataset(recipe, root=request.root)
    if what == "data":
        splits = {name: dataset.split(name).digest for name in get_args(SplitName)}
        return {"digest": dataset.digest, "splits": splits, "rows": dataset.train.rows}
    runnable = load_format(rest[0], Path(rest[1]), threads=request.threads or None)
    return {"metrics": evaluate(recipe, runnable, dataset.test), "dataset_digest": dataset.test.digest}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
