"""Published schemas for what `noa package` writes for a cluster.

Kubernetes: those of the package `kubernetes-validate`. KServe: names and types of fields as the package kserve 0.21.0
(Apache-2.0) has them in `kserve/models`, in `kserve_fields.json`; what of a predictor is a pod is checked as a pod.
KEDA: which fields a ScaledObject has and needs, after the definition `keda.sh_scaledobjects.yaml` of KEDA.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.33"
_FIELDS = json.loads((Path(__file__).parent / "kserve_fields.json").read_text())
_PLAIN = {"str": str, "int": int, "bool": bool}


def _closed(required: list[str], **properties: object) -> dict[str, object]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_TARGET = _closed(["name"], apiVersion=_TEXT, kind=_TEXT, name=_TEXT, envSourceContainerName=_TEXT)
_TRIGGER = _closed(
    ["type", "metadata"],
    type=_TEXT,
    name=_TEXT,
    metricType=_TEXT,
    useCachedMetrics={"type": "boolean"},
    metadata={"type": "object", "additionalProperties": _TEXT},
    authenticationRef=_closed(["name"], name=_TEXT, kind=_TEXT),
)
KEDA = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata={"type": "object"},
    spec=_closed(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=_TARGET,
        triggers={"type": "array", "items": _TRIGGER, "minItems": 1},
        minReplicaCount=_NUMBER,
        maxReplicaCount=_NUMBER,
        idleReplicaCount=_NUMBER,
        pollingInterval=_NUMBER,
        cooldownPeriod=_NUMBER,
        fallback=_closed(["failureThreshold", "replicas"], failureThreshold=_NUMBER, replicas=_NUMBER),
        advanced={"type": "object"},
    ),
)


def check_kubernetes(table: Mapping[str, Any]) -> None:
    """Raise unless the API server's own schema takes it, with no field that it does not know."""
    kubernetes_validate.validate(table, KUBERNETES, strict=True)


def check_keda(table: Mapping[str, Any]) -> None:
    jsonschema.validate(table, KEDA)


def check_kserve(table: Mapping[str, Any]) -> None:
    assert (table["apiVersion"], table["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    _check_fields(table, "V1beta1InferenceService")
    _check_fields(table["spec"], "V1beta1InferenceServiceSpec")
    predictor = table["spec"]["predictor"]
    _check_fields(predictor, "V1beta1PredictorSpec")
    own = {"minReplicas", "maxReplicas", "timeout", "scaleTarget", "scaleMetric"}
    pod = {name: value for name, value in predictor.items() if name not in own}
    check_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": table["metadata"], "spec": pod})


def _check_fields(table: Mapping[str, Any], kind: str) -> None:
    known = _FIELDS[kind]
    for name, value in table.items():
        assert name in known, f"{kind} has no field {name}"
        expected = _PLAIN.get(known[name], list if known[name].startswith("list") else dict)
        assert isinstance(value, expected), f"{kind}.{name} is no {known[name]}"
