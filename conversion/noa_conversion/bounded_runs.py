"""Runs of PyTorch and JAX that are waited for no longer than a `work_limit` allows.

Neither framework can be told to stop. So the run has a thread of its own while models are compared: when the time is
up the caller gets the error. PyTorch's run ends before its next operator. A loop inside a JAX program goes on until the
process ends, which it does not hold up. onnxruntime stops by itself (`onnx_runs.py`).
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from noa.formats import Runnable
from noa.signatures import Signature
from noa_conversion.work_limits import check_time, current_limit

_STOPPED_BY_ITSELF = frozenset({"onnx"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedRunnable:
    """A model whose runs end, for the caller, when the time of the `work_limit` in force is up."""

    inner: Runnable
    where: str

    @property
    def signature(self) -> Signature:
        """That of the model."""
        return self.inner.signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs.

        Raises:
            ConversionError: it was not done in time; names model and setting. What the model raises goes through.
        """
        limit = current_limit()
        if limit is None:
            return self.inner.run(inputs)
        check_time(self.where)
        run = _Run(self.inner, inputs)
        run.start()
        run.join(max(limit.seconds_left, 0.0))
        if run.is_alive():
            run.stop()
            raise limit.too_long(self.where)
        return run.outcome()


def bound_runs(model: Runnable, *, format: str, where: str) -> Runnable:
    """Return a model whose runs are bounded while models are compared, whatever runs them."""
    return model if format in _STOPPED_BY_ITSELF else BoundedRunnable(inner=model, where=where)


class _Run(threading.Thread):
    """One run, with what the caller's context holds."""

    def __init__(self, model: Runnable, inputs: Mapping[str, np.ndarray]) -> None:
        super().__init__(name="noa-bounded-run", daemon=True)
        self._context = contextvars.copy_context()
        self._model, self._inputs = model, inputs
        self._outputs: dict[str, np.ndarray] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._outputs = self._context.run(self._model.run, self._inputs)
        except BaseException as exc:  # noqa: BLE001  # raised again where the run was asked for
            self._error = exc

    def stop(self) -> None:
        """End the thread when it next comes back to Python."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(SystemExit))

    def outcome(self) -> dict[str, np.ndarray]:
        if self._error is not None:
            raise self._error
        assert self._outputs is not None
        return self._outputs
