"""The flows room: in what order do things run, and which processes of a project are there?

The pipeline's steps and the schedules are loaded on first use; nothing here imports a framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from noa_flows._launch import ServiceEvent
from noa_flows._ports import refuse_shared_ports
from noa_flows._service_plans import SERVICE_NAMES, ServiceName
from noa_flows.services import ServiceStatus, address_of, down, service_at, status, up
from noa_flows.serving_status import EndpointStatus, ServerStatus, serving_status
from noa_flows.supervisor import Command, ServiceRecord, Supervisor

if TYPE_CHECKING:
    from noa_flows.child import ChildResult, run_child
    from noa_flows.deployment import deploy
    from noa_flows.job_requests import clear_dead_requests, dead_requests
    from noa_flows.latency_evidence import measure_version
    from noa_flows.pipeline import PipelinePlan, check_backends, plan_pipeline, run_pipeline
    from noa_flows.pipeline_values import (
        STEPS,
        Candidate,
        Conversion,
        Deployment,
        Evaluation,
        PipelineEvent,
        PipelineResult,
        Promotion,
        StepName,
        Verification,
    )
    from noa_flows.provenance import capture_environment
    from noa_flows.reproduce import ReproduceOptions, reproduce_version
    from noa_flows.reproduction import Reproduction, Tolerance
    from noa_flows.schedules import (
        FlowDeployment,
        FlowRun,
        cancel,
        follow,
        list_deployments,
        list_runs,
        run,
        schedule,
        unschedule,
    )
    from noa_flows.selection import choose_best
    from noa_flows.steps import (
        check_gate,
        convert_job,
        evaluate_job,
        find_holder,
        promote_best,
        register_job,
        time_candidates,
        verify_job,
    )
    from noa_flows.training_job import train_job

_LAZY = {
    **dict.fromkeys(("ChildResult", "run_child"), "child"),
    **dict.fromkeys(("deploy",), "deployment"),
    **dict.fromkeys(("PipelinePlan", "check_backends", "plan_pipeline", "run_pipeline"), "pipeline"),
    **dict.fromkeys(
        (
            "STEPS",
            "Candidate",
            "Conversion",
            "Deployment",
            "Evaluation",
            "PipelineEvent",
            "PipelineResult",
            "Promotion",
            "StepName",
            "Verification",
        ),
        "pipeline_values",
    ),
    "capture_environment": "provenance",
    **dict.fromkeys(("ReproduceOptions", "reproduce_version"), "reproduce"),
    "measure_version": "latency_evidence",
    **dict.fromkeys(("Reproduction", "Tolerance"), "reproduction"),
    **dict.fromkeys(
        (
            "FlowDeployment",
            "FlowRun",
            "cancel",
            "follow",
            "list_deployments",
            "list_runs",
            "run",
            "schedule",
            "service_at",
            "unschedule",
        ),
        "schedules",
    ),
    **dict.fromkeys(
        (
            "check_gate",
            "convert_job",
            "evaluate_job",
            "find_holder",
            "promote_best",
            "register_job",
            "time_candidates",
            "verify_job",
        ),
        "steps",
    ),
    **dict.fromkeys(("choose_best",), "selection"),
    **dict.fromkeys(("train_job",), "training_job"),
    **dict.fromkeys(("clear_dead_requests", "dead_requests"), "job_requests"),
}

__all__ = [
    "SERVICE_NAMES",
    "STEPS",
    "Candidate",
    "ChildResult",
    "Command",
    "Conversion",
    "Deployment",
    "EndpointStatus",
    "Evaluation",
    "FlowDeployment",
    "FlowRun",
    "PipelineEvent",
    "PipelinePlan",
    "PipelineResult",
    "Promotion",
    "ReproduceOptions",
    "Reproduction",
    "ServiceEvent",
    "ServiceName",
    "ServiceRecord",
    "ServerStatus",
    "ServiceStatus",
    "StepName",
    "Supervisor",
    "Tolerance",
    "Verification",
    "address_of",
    "cancel",
    "capture_environment",
    "check_backends",
    "check_gate",
    "choose_best",
    "convert_job",
    "deploy",
    "down",
    "evaluate_job",
    "find_holder",
    "follow",
    "list_deployments",
    "list_runs",
    "measure_version",
    "plan_pipeline",
    "promote_best",
    "refuse_shared_ports",
    "register_job",
    "reproduce_version",
    "run",
    "run_child",
    "run_pipeline",
    "schedule",
    "service_at",
    "serving_status",
    "status",
    "time_candidates",
    "train_job",
    "unschedule",
    "up",
    "verify_job",
    "clear_dead_requests",
    "dead_requests",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f"noa_flows.{_LAZY[name]}"), name)
    raise AttributeError(f"module `noa_flows` has no attribute `{name}`")
