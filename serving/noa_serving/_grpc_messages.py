"""The messages of the Open Inference Protocol over gRPC: a schema as text, and the classes that protobuf makes of it.

Names and numbers are those of KServe's `inference.GRPCInferenceService` with Triton's extensions for statistics,
configuration, the repository index and system shared memory, and those of gRPC's health service. The classes live in a
descriptor pool of their own: generated modules register in protobuf's default pool, where `inference.*` of
`tritonclient` or `kserve` in the same process would clash with ours. No compiler runs, at build or later.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

# Per line: a message and its fields. `map X`: from text to X. `oneof NAME`: the field is one choice of NAME.
_INFERENCE = """
ServerLiveRequest:
ServerLiveResponse: bool live 1
ServerReadyRequest:
ServerReadyResponse: bool ready 1
ModelReadyRequest: string name 1; string version 2
ModelReadyResponse: bool ready 1
ServerMetadataRequest:
ServerMetadataResponse: string name 1; string version 2; repeated string extensions 3
ModelMetadataRequest: string name 1; string version 2
ModelMetadataResponse.TensorMetadata: string name 1; string datatype 2; repeated int64 shape 3
ModelMetadataResponse: string name 1; repeated string versions 2; string platform 3; \
    repeated ModelMetadataResponse.TensorMetadata inputs 4; repeated ModelMetadataResponse.TensorMetadata outputs 5
InferParameter: oneof parameter_choice bool bool_param 1; oneof parameter_choice int64 int64_param 2; \
    oneof parameter_choice string string_param 3; oneof parameter_choice double double_param 4; \
    oneof parameter_choice uint64 uint64_param 5
InferTensorContents: repeated bool bool_contents 1; repeated int32 int_contents 2; repeated int64 int64_contents 3; \
    repeated uint32 uint_contents 4; repeated uint64 uint64_contents 5; repeated float fp32_contents 6; \
    repeated double fp64_contents 7; repeated bytes bytes_contents 8
ModelInferRequest.InferInputTensor: string name 1; string datatype 2; repeated int64 shape 3; \
    map InferParameter parameters 4; InferTensorContents contents 5
ModelInferRequest.InferRequestedOutputTensor: string name 1; map InferParameter parameters 2
ModelInferRequest: string model_name 1; string model_version 2; string id 3; map InferParameter parameters 4; \
    repeated ModelInferRequest.InferInputTensor inputs 5; \
    repeated ModelInferRequest.InferRequestedOutputTensor outputs 6; repeated bytes raw_input_contents 7
ModelInferResponse.InferOutputTensor: string name 1; string datatype 2; repeated int64 shape 3; \
    map InferParameter parameters 4; InferTensorContents contents 5
ModelInferResponse: string model_name 1; string model_version 2; string id 3; map InferParameter parameters 4; \
    repeated ModelInferResponse.InferOutputTensor outputs 5; repeated bytes raw_output_contents 6
ModelStreamInferResponse: string error_message 1; ModelInferResponse infer_response 2
ModelInput: string name 1; DataType data_type 2; repeated int64 dims 4
ModelOutput: string name 1; DataType data_type 2; repeated int64 dims 3
ModelVersionPolicy.Specific: repeated int64 versions 1
ModelVersionPolicy: oneof policy_choice ModelVersionPolicy.Specific specific 3
ModelTransactionPolicy: bool decoupled 1
ModelConfig: string name 1; string platform 2; ModelVersionPolicy version_policy 3; int32 max_batch_size 4; \
    repeated ModelInput input 5; repeated ModelOutput output 6; string backend 17; \
    ModelTransactionPolicy model_transaction_policy 19
ModelConfigRequest: string name 1; string version 2
ModelConfigResponse: ModelConfig config 1
ModelStatisticsRequest: string name 1; string version 2
StatisticDuration: uint64 count 1; uint64 ns 2
InferStatistics: StatisticDuration success 1; StatisticDuration fail 2; StatisticDuration queue 3; \
    StatisticDuration compute_input 4; StatisticDuration compute_infer 5; StatisticDuration compute_output 6; \
    StatisticDuration cache_hit 7; StatisticDuration cache_miss 8
InferResponseStatistics: StatisticDuration compute_infer 1; StatisticDuration compute_output 2; \
    StatisticDuration success 3; StatisticDuration fail 4; StatisticDuration empty_response 5; \
    StatisticDuration cancel 6
InferBatchStatistics: uint64 batch_size 1; StatisticDuration compute_input 2; StatisticDuration compute_infer 3; \
    StatisticDuration compute_output 4
MemoryUsage: string type 1; int64 id 2; uint64 byte_size 3
ModelStatistics: string name 1; string version 2; uint64 last_inference 3; uint64 inference_count 4; \
    uint64 execution_count 5; InferStatistics inference_stats 6; repeated InferBatchStatistics batch_stats 7; \
    repeated MemoryUsage memory_usage 8; map InferResponseStatistics response_stats 9
ModelStatisticsResponse: repeated ModelStatistics model_stats 1
ModelRepositoryParameter: oneof parameter_choice bool bool_param 1; oneof parameter_choice int64 int64_param 2; \
    oneof parameter_choice string string_param 3; oneof parameter_choice bytes bytes_param 4
RepositoryIndexRequest: string repository_name 1; bool ready 2
RepositoryIndexResponse.ModelIndex: string name 1; string version 2; string state 3; string reason 4
RepositoryIndexResponse: repeated RepositoryIndexResponse.ModelIndex models 1
RepositoryModelLoadRequest: string repository_name 1; string model_name 2; map ModelRepositoryParameter parameters 3
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: string repository_name 1; string model_name 2; map ModelRepositoryParameter parameters 3
RepositoryModelUnloadResponse:
SystemSharedMemoryStatusRequest: string name 1
SystemSharedMemoryStatusResponse.RegionStatus: string name 1; string key 2; uint64 offset 3; uint64 byte_size 4
SystemSharedMemoryStatusResponse: map SystemSharedMemoryStatusResponse.RegionStatus regions 1
SystemSharedMemoryRegisterRequest: string name 1; string key 2; uint64 offset 3; uint64 byte_size 4
SystemSharedMemoryRegisterResponse:
SystemSharedMemoryUnregisterRequest: string name 1
SystemSharedMemoryUnregisterResponse:
"""
_DATA_TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32",
    "FP64", "STRING", "BF16",
)  # fmt: skip
_CALLS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelStreamInfer",
    "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
)  # fmt: skip
_HEALTH = """
HealthCheckRequest: string service 1
HealthCheckResponse: ServingStatus status 1
"""
SERVING_STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: dict[str, int] = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


class Schema(NamedTuple):
    """The pool of all files, and the message classes of `inference` and `grpc.health.v1` by name."""

    pool: DescriptorPool
    classes: dict[str, Any]  # protobuf makes the classes at run time; there is nothing to annotate them with


@cache
def schema() -> Schema:
    """Return the schema; made once."""
    pool = DescriptorPool()
    files = (_inference_file(), _health_file())
    classes: dict[str, Any] = {}
    for file in files:
        pool.Add(file)
        for message in file.message_type:
            descriptor = pool.FindMessageTypeByName(f"{file.package}.{message.name}")
            classes[message.name] = message_factory.GetMessageClass(descriptor)
    return Schema(pool, classes)


def _inference_file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="noa/inference.proto", package="inference", syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for number, name in enumerate(_DATA_TYPES):
        data_type.value.add(name=f"TYPE_{name}", number=number)
    _add_messages(file, _INFERENCE, enums={"DataType"})
    service = file.service.add(name="GRPCInferenceService")
    for name in _CALLS:
        is_stream = name == "ModelStreamInfer"
        service.method.add(
            name=name,
            input_type=".inference.ModelInferRequest" if is_stream else f".inference.{name}Request",
            output_type=f".inference.{name}Response",
            client_streaming=is_stream,
            server_streaming=is_stream,
        )
    return file


def _health_file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="noa/health.proto", package="grpc.health.v1", syntax="proto3")
    _add_messages(file, _HEALTH, enums={"ServingStatus"})
    status = file.message_type[1].enum_type.add(name="ServingStatus")
    for number, name in enumerate(SERVING_STATUS):
        status.value.add(name=name, number=number)
    file.message_type[1].field[0].type_name = ".grpc.health.v1.HealthCheckResponse.ServingStatus"
    service = file.service.add(name="Health")
    for name in ("Check", "Watch"):
        service.method.add(
            name=name,
            input_type=".grpc.health.v1.HealthCheckRequest",
            output_type=".grpc.health.v1.HealthCheckResponse",
            server_streaming=name == "Watch",
        )
    return file


def _add_messages(file: Any, text: str, *, enums: set[str]) -> None:
    lines = [line.partition(":") for line in text.strip().splitlines()]
    messages: dict[str, Any] = {}
    for path in (path for line, _, _ in lines for path in (line.partition(".")[0], line)):
        if path not in messages:
            outer, _, name = path.rpartition(".")
            messages[path] = messages[outer].nested_type.add(name=name) if outer else file.message_type.add(name=path)
    for path, _, fields in lines:
        for field in filter(None, (part.split() for part in fields.split(";"))):
            _add_field(messages[path], f".{file.package}.{path}", field, package=file.package, enums=enums)


def _add_field(message: Any, path: str, words: list[str], *, package: str, enums: set[str]) -> None:
    *prefix, kind, name, number = words
    row = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL, json_name=_json_name(name))
    if prefix == ["map"]:
        _add_map(message, path, row, f".{package}.{kind}")
        return
    if prefix == ["repeated"]:
        row.label = _Field.LABEL_REPEATED
    elif prefix:
        choices = [one.name for one in message.oneof_decl]
        if prefix[1] not in choices:
            message.oneof_decl.add(name=prefix[1])
            choices.append(prefix[1])
        row.oneof_index = choices.index(prefix[1])
    if kind in _SCALARS:
        row.type = _SCALARS[kind]
    else:
        row.type = _Field.TYPE_ENUM if kind in enums else _Field.TYPE_MESSAGE
        row.type_name = f".{package}.{kind}"


def _add_map(message: Any, path: str, row: Any, value_type: str) -> None:
    entry = message.nested_type.add(name="".join(word.title() for word in row.name.split("_")) + "Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING, json_name="key")
    entry.field.add(
        name="value",
        number=2,
        label=_Field.LABEL_OPTIONAL,
        type=_Field.TYPE_MESSAGE,
        type_name=value_type,
        json_name="value",
    )
    row.label, row.type, row.type_name = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE, f"{path}.{entry.name}"


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
