"""Our schema is the public one: every message, field, number and type is what the generated modules of others have."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_health.v1 import health_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from noa_serving._grpc_messages import SERVING_STATUS, schema

LEFT_OUT = {"ModelConfig", "ModelInput", "ModelOutput", "ModelVersionPolicy"}  # Triton has more fields in these


def facts(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type.full_name if field.message_type is not None else None
    choice = None if field.containing_oneof is None else field.containing_oneof.name
    return field.name, field.number, field.type, field.is_repeated, field.has_presence, kind, choice


def public(name: str) -> Descriptor:
    for module in (service_pb2, model_config_pb2, health_pb2):
        if name in module.DESCRIPTOR.message_types_by_name:
            return module.DESCRIPTOR.message_types_by_name[name]
    raise AssertionError(f"no public message {name}")


def compare(ours: Descriptor, theirs: Descriptor) -> None:
    mine = {facts(field) for field in ours.fields}
    wanted = {facts(field) for field in theirs.fields}
    assert mine <= wanted if theirs.name in LEFT_OUT else mine == wanted, ours.full_name
    for name, nested in ours.nested_types_by_name.items():
        compare(nested, theirs.nested_types_by_name[name])


@pytest.mark.parametrize("name", sorted(schema().classes))
def test_each_message_is_the_public_one(name: str) -> None:
    compare(schema().classes[name].DESCRIPTOR, public(name))


def test_calls_and_enumerations_are_the_public_ones() -> None:
    ours = schema().pool.FindServiceByName("inference.GRPCInferenceService")
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in ours.methods:
        other = theirs.methods_by_name[method.name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)
    ours_enum = schema().pool.FindEnumTypeByName("inference.DataType")
    assert {value.name: value.number for value in ours_enum.values} == dict(model_config_pb2.DataType.items())
    assert dict(health_pb2.HealthCheckResponse.ServingStatus.items()) == {
        name: number for number, name in enumerate(SERVING_STATUS)
    }
