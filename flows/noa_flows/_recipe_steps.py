"""What a recipe's process can be asked: JSON values in, JSON values out. Runs in that process only, never in noa's."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, get_args

from noa.atomic_write import translate_disk_errors, write_file
from noa.digests import build_manifest
from noa.errors import ConversionError
from noa.settings import ConversionSettings, TrainingSettings
from noa_conversion import convert, describe_failure, load_format, measure_equivalence, measure_performance
from noa_flows._recipe_messages import (
    EXAMPLE_FILE,
    Message,
    conversion_from,
    conversion_to,
    evaluation_to,
    evidence_to,
    job_to,
    verification_to,
)
from noa_flows._recipe_space import check_space
from noa_flows._test_data import load_test_data
from noa_flows.pipeline_values import Conversion, Evaluation, Verification
from noa_training import (
    JobRequest,
    SplitName,
    TrainedJob,
    evaluate,
    finished_job,
    load_dataset,
    load_trained,
    measure,
    recipe_of,
)

SERVED_FORMAT = "onnx"
_LATENCY_ROWS = 32
_EXAMPLE_ROWS = 9  # `noa convert` measures on them; the odd size catches a batch axis that became static


class _Tails(TypedDict):
    """Batch sizes whose 99th percentile is judged, and how long each may take."""

    tails: tuple[int, ...]
    tail_seconds: float


_NO_TAILS: _Tails = {"tails": (), "tail_seconds": 0.0}


def _plan(values: Message) -> Message:
    """Check the requests and return the name of the model and what is measured of it."""
    recipes = [recipe_of(_request(value)) for value in values["requests"]]
    return {"name": recipes[0].name, "metrics": list(recipes[0].metrics)}


def _finished(values: Message) -> Message | None:
    """Return the newest attempt of this very job, if it has finished."""
    job = finished_job(_request(values["request"]), TrainingSettings.model_validate(values["settings"]))
    return None if job is None else job_to(job)


def _rows(values: Message) -> Message:
    """Return the digest of the job's test rows, if they are still those of the job."""
    return {"digest": load_test_data(_job(values)).digest}


def _evaluate(values: Message) -> Message:
    job, written = _job(values), conversion_from(values["written"])
    return evaluation_to(_measure(job, written, values["threads"], served=False))


def _convert(values: Message) -> Message:
    """Write the job's model as ONNX beside its native format, in place of an earlier attempt."""
    job = _job(values)
    folder = job.folder / SERVED_FORMAT
    with translate_disk_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
    model = load_trained(job)
    convert(model, folder, to=SERVED_FORMAT, settings=ConversionSettings.model_validate(values["settings"]))
    return conversion_to(Conversion(format=SERVED_FORMAT, folder=folder, digest=build_manifest(folder).digest))


def _verify(values: Message) -> Message:
    """Prove that the converted format computes what the native one does, and measure it."""
    job, conversion = _job(values), conversion_from(values["conversion"])
    evidence = measure_equivalence(
        source=job.backend,
        source_folder=job.native_folder,
        target=conversion.format,
        target_folder=conversion.folder,
        samples=load_test_data(job).inputs,
        settings=ConversionSettings.model_validate(values["settings"]),
    )
    if not evidence.passed:
        raise ConversionError(
            f"`{conversion.format}` computes something else than `{job.backend}`",
            where=str(conversion.folder),
            expected="equal outputs within the tolerance of `conversion.absolute_tolerance` and `relative_tolerance`",
            received=describe_failure(evidence.values),
            remedy="Do not serve this format; report the operation, or train with another layer",
            evidence=evidence,
        )
    evaluation = _measure(
        job, conversion, values["threads"], served=True, batches=values["batches"], tails=_tails(values)
    )
    return verification_to(Verification(evidence=evidence, evaluation=evaluation))


def _example(values: Message) -> Message:
    """Write the first test rows as an example of the inputs into the job's folder; returns their names in order."""
    import numpy as np

    job = _job(values)
    inputs = load_test_data(job).head(_EXAMPLE_ROWS).inputs
    content = io.BytesIO()
    np.savez(content, *inputs.values())
    write_file(job.folder / EXAMPLE_FILE, content.getvalue())
    return {"names": list(inputs)}


def _measure_format(values: Message) -> list[Message]:
    """Measure another version's format on the job's test rows, row by row."""
    job, written = _job(values), conversion_from(values["written"])
    test = load_test_data(job)
    measured = measure(
        recipe_of(job.request),
        load_format(written.format, written.folder),
        test,
        subject=written.format,
        digest=written.digest,
        dataset_digest=test.digest,
    )
    return [evidence_to(fact) for fact in measured.evidence]


def _latency(values: Message) -> list[Message]:
    job, written = _job(values), conversion_from(values["written"])
    samples = load_test_data(job).head(_LATENCY_ROWS).inputs
    facts = measure_performance(
        written.format,
        written.folder,
        samples,
        threads=values["threads"],
        batches=tuple(values["batches"]),
        **_tails(values),
    )
    return [evidence_to(fact) for fact in facts]


def _data(values: Message) -> Message:
    """Return the digests of the data that the recipe gives now."""
    request = _request(values["request"])
    dataset = load_dataset(recipe_of(request), root=request.root)
    splits = {name: dataset.split(name).digest for name in get_args(SplitName)}
    return {"digest": dataset.digest, "splits": splits, "rows": dataset.train.rows}


def _metrics(values: Message) -> Message:
    """Return the metrics of a format on the recipe's test split."""
    request = _request(values["request"])
    recipe = recipe_of(request)
    dataset = load_dataset(recipe, root=request.root)
    runnable = load_format(values["format"], Path(values["folder"]), threads=request.threads or None)
    return {"metrics": evaluate(recipe, runnable, dataset.test), "dataset_digest": dataset.test.digest}


STEPS: dict[str, Callable[[Message], object]] = {
    "plan": _plan,
    "space": check_space,
    "finished": _finished,
    "rows": _rows,
    "evaluate": _evaluate,
    "convert": _convert,
    "verify": _verify,
    "example": _example,
    "measure": _measure_format,
    "latency": _latency,
    "data": _data,
    "metrics": _metrics,
}


def _measure(
    job: TrainedJob,
    written: Conversion,
    threads: int | None,
    *,
    served: bool,
    batches: Sequence[int] = (),
    tails: _Tails = _NO_TAILS,
) -> Evaluation:
    """Measure a format; what is `served` also row by row, and in time with `batches`: versions are compared by it."""
    test = load_test_data(job)
    runnable = load_format(written.format, written.folder, threads=threads)
    measured = measure(
        recipe_of(job.request),
        runnable,
        test,
        subject=written.format,
        digest=written.digest,
        dataset_digest=test.digest,
        with_predictions=served,
    )
    samples = test.head(_LATENCY_ROWS).inputs
    performance = (
        measure_performance(written.format, written.folder, samples, threads=threads, batches=tuple(batches), **tails)
        if batches
        else ()
    )
    return Evaluation(
        format=written.format,
        digest=written.digest,
        dataset_digest=test.digest,
        rows=test.rows,
        metrics=measured.metrics,
        evidence=(*measured.evidence, *performance),
    )


def _tails(values: Message) -> _Tails:
    return {"tails": tuple(values["tails"]), "tail_seconds": float(values["tail_seconds"])}


def _request(value: object) -> JobRequest:
    return JobRequest.from_json(json.dumps(value))


def _job(values: Message) -> TrainedJob:
    return TrainedJob.from_json(json.dumps(values["job"]))
