"""Many versions in seconds: the rows that `Registry.register` writes, in noa's and MLflow's tables, without files.

For measuring what the size of the registry costs. Records agree with their digests, so a filled version resolves and
is found by search; it has no files, so what hashes them (load, promote, verify) needs versions that were registered
really, before or after the filling: numbers go on where they were.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import Table, insert, select, update

from noa.digests import FileDigest, Manifest, sha256_bytes
from noa.signatures import Signature, TensorSpec
from noa_registry.artifacts import UnitKey
from noa_registry.database import to_text
from noa_registry.evidence_sets import EvidenceSet
from noa_registry.mlflow_rows import WORKSPACE
from noa_registry.records import to_json, version_digest, with_record
from noa_registry.tables import (
    evidence,
    evidence_sets,
    formats,
    mlflow_models,
    mlflow_version_tags,
    mlflow_versions,
    models,
    outbox,
    version_labels,
    version_metrics,
    versions,
)

if TYPE_CHECKING:
    from noa_registry import Registry

TEAMS = ("vision", "speech", "risk", "search", "pricing", "fraud", "maps", "ads")
DATASETS = 50
ACTOR = "bulk"
_CHUNK = 4000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_STEP_S = 60
_SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
)
_Rows = dict[str, list[dict[str, object]]]
_TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        versions,
        formats,
        evidence,
        evidence_sets,
        version_labels,
        version_metrics,
        outbox,
        mlflow_versions,
        mlflow_version_tags,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bulk:
    name: str
    number: int
    uid: str
    manifests: Mapping[str, Manifest]
    wrapper: Manifest
    digest: str
    dataset_digest: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    created_at: datetime


def fill_versions(registry: Registry, name: str, count: int, *, seed: int = 0) -> range:
    """Append `count` versions to model `name`, which is made if it is missing, and return their numbers.

    Version number n was created at 2026-01-01 plus n minutes, by `bulk`, on one of 50 datasets, with the formats
    `torch` and `onnx`, tags (`team`, `build`: unique) and metrics (`accuracy`, `loss` on the test split).
    """
    # There is no public way past the files.
    database, artifacts = registry._database, registry._artifacts  # pyright: ignore[reportPrivateUsage]
    with database.write() as connection:
        first = connection.execute(select(models.c.next_number).where(models.c.name == name)).scalar()
        moment, now_ms = to_text(_START), int(_START.timestamp() * 1000)
        if first is None:
            connection.execute(insert(models).values(name=name, next_number=1, created_at=moment, updated_at=moment))
            connection.execute(
                insert(mlflow_models).values(
                    workspace=WORKSPACE, name=name, creation_time=now_ms, last_updated_time=now_ms
                )
            )
        numbers = range(first or 1, (first or 1) + count)
        for start in range(numbers.start, numbers.stop, _CHUNK):
            chunk = range(start, min(start + _CHUNK, numbers.stop))
            rows: _Rows = {table: [] for table in _TABLES}
            for bulk in _versions(name, chunk, seed):
                _append(rows, bulk, artifacts.unit_uri(UnitKey(name=name, uid=bulk.uid)))
            for table, values in rows.items():
                connection.execute(insert(_TABLES[table]), values)
        connection.execute(update(models).where(models.c.name == name).values(next_number=numbers.stop))
    return numbers


def dataset_digest(index: int) -> str:
    """Return the digest of the `index`-th of the datasets that filled versions were trained on."""
    return _digest("dataset", index)


def _versions(name: str, numbers: range, seed: int) -> Iterator[_Bulk]:
    for number in numbers:
        chance = random.Random(f"{seed}/{name}/{number}")
        manifests = {
            "torch": _manifest("weights.safetensors", name, seed, number),
            "onnx": _manifest("model.onnx", name, seed, number),
        }
        wrapper = _manifest("MLmodel", name, seed, number)
        dataset = dataset_digest(chance.randrange(DATASETS))
        yield _Bulk(
            name=name,
            number=number,
            uid=_digest("uid", name, seed, number)[7:39],
            manifests=manifests,
            wrapper=wrapper,
            digest=version_digest(
                name=name,
                native="torch",
                native_digest=manifests["torch"].digest,
                wrapper_digest=wrapper.digest,
                signature=_SIGNATURE,
                dataset_digest=dataset,
            ),
            dataset_digest=dataset,
            tags={"team": chance.choice(TEAMS), "build": f"{seed}-{number}"},
            metrics={"accuracy": round(chance.uniform(0.5, 1.0), 6), "loss": round(chance.uniform(0.0, 3.0), 6)},
            created_at=_START + timedelta(seconds=_STEP_S * number),
        )


def _append(rows: _Rows, bulk: _Bulk, source: str) -> None:
    here: dict[str, object] = {"name": bulk.name, "number": bulk.number}
    moment = to_text(bulk.created_at)
    made = {"created_at": moment, "created_by": ACTOR}
    rows["noa_versions"].append(
        with_record(
            {
                **here,
                "uid": bulk.uid,
                "digest": bulk.digest,
                "native": "torch",
                "signature": _SIGNATURE_TEXT,
                "wrapper": _manifest_text(bulk.wrapper),
                "dataset_digest": bulk.dataset_digest,
                "run_id": None,
                "git_commit": None,
                "environment": "{}",
                "params": "{}",
                "tags": json.dumps(bulk.tags),
                "description": "",
                **made,
            }
        )
    )
    for format_name, manifest in bulk.manifests.items():
        text = _manifest_text(manifest)
        rows["noa_formats"].append(
            with_record(
                {**here, "format": format_name, "uid": bulk.uid, "digest": manifest.digest, "manifest": text, **made}
            )
        )
    labels = [("native", "torch"), ("format", "torch"), ("format", "onnx"), ("by", ACTOR)]
    labels += [("dataset", bulk.dataset_digest), *((f"tag.{key}", value) for key, value in bulk.tags.items())]
    rows["noa_version_labels"] += [{**here, "key": key, "value": value, "created_at": moment} for key, value in labels]
    rows["noa_outbox"].append(
        {
            "name": bulk.name,
            "kind": "version.registered",
            "payload": json.dumps({"number": bulk.number, "digest": bulk.digest, "actor": ACTOR}),
            "created_at": moment,
        }
    )
    _append_evidence(rows, bulk, here, moment)
    _append_mlflow(rows, bulk, source)


def _append_evidence(rows: _Rows, bulk: _Bulk, here: Mapping[str, object], moment: str) -> None:
    measured = {"dataset_digest": bulk.dataset_digest, "split": "test", "metrics": bulk.metrics}
    compared = {"max_difference": 0.0, "source": "torch", "source_digest": bulk.manifests["torch"].digest}
    facts = [
        with_record(
            {
                **here,
                "kind": kind,
                "subject": "onnx",
                "digest": bulk.manifests["onnx"].digest,
                "passed": passed,
                "content": json.dumps(content),
                "created_at": moment,
            }
        )
        for kind, passed, content in (("metrics", None, measured), ("equivalence", True, compared))
    ]
    rows["noa_evidence"] += facts
    rows["noa_evidence_sets"].append(
        {**here, **EvidenceSet().extended(str(fact["record"]) for fact in facts).to_dict()}
    )
    rows["noa_version_metrics"] += [
        {
            **here,
            "format": "onnx",
            "dataset_digest": bulk.dataset_digest,
            "split": "test",
            "metric": metric,
            "value": value,
            "created_at": moment,
        }
        for metric, value in bulk.metrics.items()
    ]


def _append_mlflow(rows: _Rows, bulk: _Bulk, source: str) -> None:
    here: dict[str, object] = {"workspace": WORKSPACE, "name": bulk.name, "version": bulk.number}
    made_ms = int(bulk.created_at.timestamp() * 1000)
    rows["model_versions"].append(
        {
            **here,
            "creation_time": made_ms,
            "last_updated_time": made_ms,
            "description": None,
            "user_id": ACTOR,
            "current_stage": "None",
            "source": source,
            "storage_location": source,
            "run_id": None,
            "status": "READY",
        }
    )
    tags = {**bulk.tags, "noa.digest": bulk.digest, "noa.formats": "onnx,torch"}
    rows["model_version_tags"] += [{**here, "key": key, "value": value} for key, value in tags.items()]


def _manifest(path: str, *parts: object) -> Manifest:
    file = FileDigest(path=path, size_bytes=1000, digest=_digest(path, *parts))
    manifest = Manifest(files=(file,), digest="")
    return replace(manifest, digest=sha256_bytes(_manifest_text(manifest).encode()))


def _manifest_text(manifest: Manifest) -> str:
    (file,) = manifest.files
    return f'[{{"digest":"{file.digest}","path":"{file.path}","size_bytes":{file.size_bytes}}}]'  # as `to_json`, sooner


def _digest(*parts: object) -> str:
    return "sha256:" + sha256("/".join(map(str, parts)).encode()).hexdigest()


_SIGNATURE_TEXT = to_json(_SIGNATURE.to_dict())
