"""Stock BentoML: two APIs on numpy arrays, one of them with BentoML's adaptive batching. `bentoml serve` runs it."""

from __future__ import annotations

import bentoml
import numpy as np
from peer_model import load_model


@bentoml.service(workers=1)
class Peer:
    def __init__(self) -> None:
        self.model = load_model()

    @bentoml.api
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.run({self.model.first: x.astype(self.model.dtypes[self.model.first])})

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict_batched(self, x: np.ndarray) -> np.ndarray:
        return self.model.run({self.model.first: x.astype(self.model.dtypes[self.model.first])})


@bentoml.service(workers=1)
class TokensPeer:
    """For the encoder, which has two inputs: BentoML batches one array, so both are stacked in it."""

    def __init__(self) -> None:
        self.model = load_model()

    @bentoml.api
    def predict(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.model.run({"tokens": tokens.astype(np.int64), "mask": mask.astype(np.int64)})

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict_batched(self, stacked: np.ndarray) -> np.ndarray:
        both = stacked.astype(np.int64)
        return self.model.run({"tokens": both[:, 0].copy(), "mask": both[:, 1].copy()})
