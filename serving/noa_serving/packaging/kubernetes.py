"""Manifests for Kubernetes: a Deployment that loses no request, and what belongs around it.

A pod that is to end gets SIGTERM only after `_LEAVE_S`, when no proxy sends it anything new, and has then as long as
its server needs to finish what it began. Callers need keys unless the endpoint's settings allow anybody: they come from
a Secret, and no pod starts without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import yaml

from noa_serving.packaging.bento_folder import PORT
from noa_serving.packaging.container import USER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from noa.settings import ServingSettings
    from noa_serving.packaging.packed_model import PackedVersion

Object: TypeAlias = "dict[str, object]"
Autoscaler: TypeAlias = Literal["hpa", "keda"]

_LEAVE_S: Final = 10
_GRACE_S: Final = 10  # beyond the longest request
_WORKER_BYTES: Final = 192 << 20  # interpreter, runtime and buffers of one worker, measured at 120 MB for a small model
_COPIES: Final = 3  # of a model's bytes: its file while it is read, the graph, and the runtime's own form
_KEYS_FOLDER: Final = "/etc/noa-keys"
_MEBI: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploying:
    """How an endpoint is to run in a cluster."""

    image: str
    replicas: int = 2
    max_replicas: int = 10
    autoscaler: Autoscaler = "hpa"
    prometheus: str = "http://prometheus.monitoring.svc:9090"
    requests_per_s: int = 1000
    """So many requests per second and replica does KEDA aim at."""


def manifests(
    endpoint: str, version: PackedVersion, serving: ServingSettings, deploying: Deploying, *, size_bytes: int
) -> dict[str, str]:
    """Return the manifests by file name; `size_bytes` is what the model's files take."""
    label = endpoint_label(endpoint)
    meta = _metadata(label, version)
    pod = pod_spec(serving, deploying, label, size_bytes=size_bytes)
    objects = {
        "deployment.yaml": _deployment(meta, label, pod, deploying),
        "service.yaml": _service(meta, label, serving),
        "pod-disruption-budget.yaml": _budget(meta, label),
        "network-policy.yaml": _network(meta, label, serving),
    }
    if deploying.autoscaler == "hpa":
        objects["horizontal-pod-autoscaler.yaml"] = _hpa(meta, label, deploying)
    else:
        objects["keda-scaled-object.yaml"] = _keda(meta, label, endpoint, deploying)
    objects["kustomization.yaml"] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(objects),
    }
    return {name: to_yaml(table) for name, table in objects.items()}


def inference_service(
    endpoint: str, version: PackedVersion, serving: ServingSettings, deploying: Deploying, *, size_bytes: int
) -> str:
    """Return a KServe InferenceService whose predictor is this server: it speaks KServe's protocol v2 by itself."""
    label = endpoint_label(endpoint)
    pod = pod_spec(serving, deploying, label, size_bytes=size_bytes, container="kserve-container")
    predictor: Object = {
        "minReplicas": deploying.replicas,
        "maxReplicas": deploying.max_replicas,
        "timeout": math.ceil(serving.timeout_s),
        **pod,
    }
    return to_yaml(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": _metadata(label, version),
            "spec": {"predictor": predictor},
        }
    )


def endpoint_label(endpoint: str) -> str:
    """Return the endpoint's name as Kubernetes allows it: lower case, without dots and underscores, 50 characters."""
    text = "".join(char if char.isascii() and char.isalnum() else "-" for char in endpoint.lower()).strip("-")
    return f"noa-{text[:46].strip('-')}"


def to_yaml(table: Object) -> str:
    """Return one document, in the order in which it was made."""
    return yaml.safe_dump(table, sort_keys=False)


def pod_spec(
    serving: ServingSettings, deploying: Deploying, label: str, *, size_bytes: int, container: str = "server"
) -> Object:
    """Return the pod: no root, no writable disk but `/tmp`, and probes that mean what they say."""
    environment: list[Object] = []
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}]
    if not serving.allow_unauthenticated:
        environment.append({"name": "NOA__SERVING__KEYS_FILE", "value": f"{_KEYS_FOLDER}/api-keys.json"})
        mounts.append({"name": "keys", "mountPath": _KEYS_FOLDER, "readOnly": True})
        # 0440: the group of `fsGroup` reads it, nobody else.
        volumes.append({"name": "keys", "secret": {"secretName": f"{label}-keys", "defaultMode": 0o440}})
    server: Object = {
        "name": container,
        "image": deploying.image,
        "ports": _ports(serving),
        **({"env": environment} if environment else {}),
        "resources": _resources(serving, size_bytes),
        "startupProbe": _probe("/health/startup", period_s=2, failures=150),
        "readinessProbe": _probe("/v2/health/ready", period_s=2, failures=2),
        "livenessProbe": _probe("/v2/health/live", period_s=10, failures=6),
        # Python, because the image need not have a shell.
        "lifecycle": {"preStop": {"exec": {"command": ["python", "-c", f"import time; time.sleep({_LEAVE_S})"]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s(serving),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [server],
        "volumes": volumes,
    }


def grace_s(serving: ServingSettings) -> int:
    """Return how long a pod has to end: until nobody sends to it, and then as long as its longest request."""
    return _LEAVE_S + math.ceil(serving.timeout_s) + _GRACE_S


def _metadata(label: str, version: PackedVersion) -> Object:
    labels: Object = {
        "app.kubernetes.io/name": label,
        "app.kubernetes.io/version": str(version.number),
        "app.kubernetes.io/managed-by": "noa",
    }
    annotations = {"noa/model": version.reference, "noa/digest": version.digest, "noa/format": version.format.name}
    return {"name": label, "labels": labels, "annotations": annotations}


def _selector(label: str) -> Object:
    return {"app.kubernetes.io/name": label}


def _ports(serving: ServingSettings) -> list[Object]:
    ports: list[Object] = [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}]
    if serving.grpc_port:
        ports.append({"name": "grpc", "containerPort": serving.grpc_port, "protocol": "TCP"})
    return ports


def _probe(path: str, *, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "http1"},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _resources(serving: ServingSettings, size_bytes: int) -> Object:
    """Ask for the memory of each worker with its copies of the model, and allow the bodies in flight on top."""
    memory = serving.workers * (_WORKER_BYTES + _COPIES * size_bytes)
    cores = serving.workers * max(1, serving.threads)
    most = memory + memory // 2 + serving.max_in_flight_bytes
    return {
        "requests": {"cpu": str(cores), "memory": _mebibytes(memory)},
        "limits": {"memory": _mebibytes(most)},  # no limit of the CPU: throttling would be latency
    }


def _mebibytes(size: int) -> str:
    return f"{-(-size // _MEBI)}Mi"


def _deployment(meta: Object, label: str, pod: Object, deploying: Deploying) -> Object:
    spread: Object = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _selector(label)},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": deploying.replicas,
            "revisionHistoryLimit": 3,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": _selector(label)},
            "template": {
                "metadata": {"labels": meta["labels"], "annotations": meta["annotations"]},
                "spec": {**pod, "topologySpreadConstraints": [spread]},
            },
        },
    }


def _service(meta: Object, label: str, serving: ServingSettings) -> Object:
    names: Iterable[object] = (port["name"] for port in _ports(serving))
    numbers = (80, serving.grpc_port)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "selector": _selector(label),
            "ports": [
                {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
                for name, number in zip(names, numbers, strict=False)
            ],
        },
    }


def _budget(meta: Object, label: str) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta,
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(label)}},
    }


def _network(meta: Object, label: str, serving: ServingSettings) -> Object:
    """Let in what comes for the server's ports, and let nothing out: it needs no registry and no name server."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": _selector(label)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [{"port": port["name"], "protocol": "TCP"} for port in _ports(serving)]}],
            "egress": [],
        },
    }


def _hpa(meta: Object, label: str, deploying: Deploying) -> Object:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": meta,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": label},
            "minReplicas": deploying.replicas,
            "maxReplicas": deploying.max_replicas,
            "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": _utilisation()}},
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def _utilisation() -> Object:
    return {"type": "Utilization", "averageUtilization": 70}


def _keda(meta: Object, label: str, endpoint: str, deploying: Deploying) -> Object:
    """Scale by requests per second, of which the last replica is taken away when there are none."""
    query = f'sum(rate(noa_requests_total{{endpoint="{endpoint}",service="{label}"}}[1m]))'
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": meta,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": label},
            "minReplicaCount": deploying.replicas,
            "maxReplicaCount": deploying.max_replicas,
            "cooldownPeriod": 300,
            "triggers": [
                {
                    "type": "prometheus",
                    "metadata": {
                        "serverAddress": deploying.prometheus,
                        "query": query,
                        "threshold": str(deploying.requests_per_s),
                    },
                }
            ],
        },
    }
