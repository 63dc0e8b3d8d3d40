"""The last steps from another library: write the graph, and compare it with the library's own predictions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from noa.atomic_write import write_file
from noa.errors import ConversionError
from noa.formats import find_adapter
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion.batches import batch_axis, sizes_of
from noa_conversion.comparison import compare_output, find_vacuous, largest_finite
from noa_conversion.equivalence import summarise
from noa_conversion.generated_inputs import generate_inputs
from noa_conversion.onnx_input_ranges import read_input_ranges
from noa_conversion.onnx_staging import stage_onnx

if TYPE_CHECKING:
    import onnx

Predict = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""The library's own answer for inputs by name, by the names of the graph's outputs."""

_SEED: Final = 0
_BATCHES: Final = (1, 7, 64)
BATCH: Final = "batch"


def write_proven(
    model: onnx.ModelProto,
    folder: Path,
    *,
    predict: Predict,
    settings: ConversionSettings,
    library: str,
    samples: Mapping[str, np.ndarray] | None = None,
) -> dict[str, object]:
    """Write `model.onnx` and `signature.json`, and return how it compares with `predict` on real or made-up inputs.

    Raises:
        ConversionError: it computes something else than the library.
        InvalidInputError: the graph takes or gives what noa has no tensors for.
    """
    name_batch_axis(model)
    with tempfile.TemporaryDirectory(prefix="noa-from-") as scratch:
        path = Path(scratch) / "model.onnx"
        write_file(path, model.SerializeToString(deterministic=True))
        stage_onnx(path, folder, bind={})
    return prove(folder, predict, settings=settings, library=library, samples=samples)


def prove(
    folder: Path,
    predict: Predict,
    *,
    settings: ConversionSettings,
    library: str,
    samples: Mapping[str, np.ndarray] | None = None,
) -> dict[str, object]:
    """Compare a folder of the format `onnx` with a library's own predictions.

    Raises:
        ConversionError: it computes something else.
    """
    runnable = find_adapter("onnx").load(folder)
    signature = runnable.signature
    answers = [(inputs, predict(inputs), runnable.run(inputs)) for inputs in _draws(signature, folder, samples)]
    differences = [
        compare_output(
            spec,
            np.asarray(expected[spec.name]),
            received[spec.name],
            batch=next(iter(sizes_of(signature, inputs).values()), 1),
            sizes=sizes_of(signature, inputs),
            settings=settings,
            largest=largest_finite(*(np.asarray(one[spec.name]) for _, one, _ in answers if spec.name in one)),
        )
        for inputs, expected, received in answers
        for spec in signature.outputs
        if spec.name in expected
    ]
    summary = summarise(differences, problem=None)
    failed = next((difference for difference in differences if not difference.passed), None)
    vacuous = find_vacuous(signature.outputs, differences)
    if failed is None and vacuous is not None:
        raise ConversionError(
            f"nothing shows that the graph computes what {library} does: {vacuous}",
            expected="samples for which the model gives numbers",
            remedy="Give other samples",
        )
    if failed is not None or not differences:
        what = "no output could be compared" if failed is None else f"output `{failed.output}`: {failed.problem}"
        raise ConversionError(
            f"the graph computes something else than {library}: {what}",
            expected=f"equal predictions ({differences[0].tolerance.reason if differences else 'no outputs'})",
            received="nothing" if failed is None else f"{failed.max_abs_error:.6g} apart in a batch of {failed.batch}",
            remedy="Its converter does not do this model right; report the estimator",
        )
    return {"source": library, "inputs": "given" if samples else "generated with seed 0", **summary}


def name_batch_axis(model: onnx.ModelProto) -> None:
    """Name the first axis of every input and output `batch`, where it is free."""
    initialisers = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in initialisers and len(dims) and not dims[0].HasField("dim_value"):
            dims[0].dim_param = BATCH


def _draws(signature: Signature, folder: Path, samples: Mapping[str, np.ndarray] | None) -> list[dict[str, np.ndarray]]:
    if samples is not None:
        signature.validate(samples)
        return [dict(samples), {name: array[:1] for name, array in samples.items()}]
    axis = batch_axis(signature)
    ranges = read_input_ranges(folder)
    sizes = [{}] if axis is None else [{axis: batch} for batch in _BATCHES]
    others = {a for spec in signature.inputs for a in spec.shape if isinstance(a, str)} - {axis}
    return [
        generate_inputs(signature, {**dict.fromkeys(others, 8), **size}, ranges=ranges, seed=_SEED) for size in sizes
    ]
