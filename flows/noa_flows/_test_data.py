"""The test split of a finished job, loaded once and proven to be the data the job was trained on.

It calls the recipe: in a pipeline only the recipe's own process does so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from noa.errors import IntegrityError
from noa_training import Split, TrainedJob, load_dataset, recipe_of

_KEPT = 2
_lock = threading.Lock()
_splits: OrderedDict[str, Split] = OrderedDict()
"""Newest last, by dataset digest: two backends and four steps of one pipeline read the same rows."""


def load_test_data(job: TrainedJob) -> Split:
    """Return the test split of the data that the job was trained on.

    Raises:
        RecipeError: the recipe or its data cannot be loaded.
        IntegrityError: the recipe's `data` gives other rows now, so that its metrics would be of something else.
    """
    with _lock:
        if job.dataset_digest in _splits:
            _splits.move_to_end(job.dataset_digest)
            return _splits[job.dataset_digest]
        dataset = load_dataset(recipe_of(job.request), root=job.request.root)
        if dataset.digest != job.dataset_digest:
            raise IntegrityError(
                "the recipe's data has changed since the job was trained",
                where=job.recipe,
                expected=job.dataset_digest,
                received=dataset.digest,
                remedy="`data` must give the same rows each time; train again",
                file=job.recipe,
            )
        _splits[job.dataset_digest] = dataset.test
        while len(_splits) > _KEPT:
            _splits.popitem(last=False)
        return dataset.test
