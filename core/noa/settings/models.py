"""What can be set: one frozen model per concern, each field with its meaning and unit.

Paths may be relative in files; the loader makes them absolute against the project's root before the rooms see them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_serializer,
    field_validator,
    model_validator,
)

from noa.database_urls import mask_password, mask_web_address
from noa.errors import InvalidInputError
from noa.references import check_alias, check_name, parse_reference


def _name(text: str) -> str:
    return _checked(check_name, text)


def _alias(text: str) -> str:
    return _checked(check_alias, text)


def _checked(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except InvalidInputError as exc:  # pydantic collects ValueError only
        raise ValueError(str(exc)) from exc


_HTTP_URL = re.compile(r"https?://[^/\s?#@]+/?")
# The rules for names of buckets; a prefix of plain parts, so that every key is also a path.
_S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[A-Za-z0-9._=-]+)*/?")

Name = Annotated[str, AfterValidator(_name)]
Alias = Annotated[str, AfterValidator(_alias)]
Port = Annotated[StrictInt, Field(ge=0, le=65535)]
PUBLIC_KEY_PREFIX = "ed25519:"
_SHORTEST_SECRET = 16
LatencyName = Annotated[str, Field(pattern=r"^p(50|99)(@[1-9][0-9]*)?$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
EvidenceKind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]


class Section(BaseModel):
    """Base of all settings: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


_SectionT = TypeVar("_SectionT", bound=Section)


class ProjectSettings(Section):
    """The project itself."""

    name: Name = Field(
        default="project", description="Name of the project; used for the MLflow experiment and Prefect objects."
    )
    state_dir: Path = Field(
        default=Path(".noa"), description="Folder that holds everything noa writes for this project."
    )


class SigningSettings(Section):
    """Who signs what is sealed, and whose signatures count."""

    method: Literal["key", "sigstore"] = Field(
        default="key", description="`key`: an EC key of yours; `sigstore`: an OpenID identity, which needs a network."
    )
    private_key: Path | None = Field(
        default=None, description="PEM file of the EC key that signs (mode 0600); empty: nothing is signed."
    )
    private_key_pem: SecretStr | None = Field(
        default=None, description="The key itself instead of its file; set it in the environment, not in a file."
    )
    private_key_password: SecretStr | None = Field(default=None, description="Password of the private key, if any.")
    trusted_keys: tuple[Path, ...] = Field(
        default=(), description="PEM files of public keys whose signatures count; one's own key always does."
    )
    required: StrictBool = Field(
        default=False, description="Whether a version without a signature is refused when it is loaded or promoted."
    )
    sigstore_identity: str = Field(
        default="", description="E-mail or URI of the sigstore identity whose signatures count."
    )
    sigstore_issuer: str = Field(default="", description="URL of the OpenID issuer of that identity.")
    sigstore_token: SecretStr | None = Field(
        default=None, description="OpenID token to sign with; empty: the credential that the CI system offers."
    )

    @property
    def signs(self) -> bool:
        """Whether what is sealed is signed."""
        return self.method == "sigstore" or self.private_key is not None or self.private_key_pem is not None

    @property
    def checks(self) -> bool:
        """Whether signatures are looked at when something is opened."""
        return self.required or bool(self.trusted_keys or self.sigstore_identity) or self._has_key

    @property
    def _has_key(self) -> bool:
        return self.private_key is not None or self.private_key_pem is not None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.private_key is not None and self.private_key_pem is not None:
            raise ValueError("`private_key` and `private_key_pem` are both set; give one of them")
        if bool(self.sigstore_identity) != bool(self.sigstore_issuer):
            raise ValueError("`sigstore_identity` and `sigstore_issuer` belong together; set both or none")
        if self.required and not (self._has_key or self.trusted_keys or self.sigstore_identity):
            raise ValueError("`required` is set and no key is trusted, so that no version could ever be opened")
        return self


class S3Settings(Section):
    """An S3 API: AWS, or anything that speaks it."""

    endpoint_url: str = Field(default="", description="URL of the S3 API, e.g. of MinIO; empty: AWS.")
    region: str = Field(default="", description="Region; empty: what the AWS environment or profile says.")
    access_key: SecretStr = Field(
        default=SecretStr(""), description="Access key; empty: the usual AWS chain (environment, profile, role)."
    )
    secret_key: SecretStr = Field(default=SecretStr(""), description="Secret of `access_key`.")
    connect_timeout_s: StrictFloat = Field(default=5.0, gt=0, description="How long to wait for a connection, seconds.")
    read_timeout_s: StrictFloat = Field(default=30.0, gt=0, description="How long to wait for more bytes, seconds.")
    min_bytes_per_s: StrictInt = Field(
        default=1024, ge=0, description="A download slower than this over `read_timeout_s` is begun anew, bytes/s."
    )
    max_attempts: StrictInt = Field(default=5, ge=1, description="How often a request is tried before it is an error.")
    part_bytes: StrictInt = Field(
        default=16 << 20, ge=5 << 20, description="Files above this are sent in parts of this size, bytes."
    )
    parallel: StrictInt = Field(default=4, ge=1, le=64, description="Parts or files that are sent or fetched at once.")
    lease_s: StrictFloat = Field(
        default=300.0, ge=1, description="A writer that was not heard of for so long is dead; its rest is removed."
    )

    @field_serializer("access_key", "secret_key", when_used="json")
    def _keep_secret(self, _value: SecretStr) -> str:
        # JSON goes into files of jobs and to other processes; these find the keys in their environment.
        return ""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if bool(self.access_key.get_secret_value()) != bool(self.secret_key.get_secret_value()):
            raise ValueError("`access_key` and `secret_key` belong together; set both, or neither for the AWS chain")
        if self.endpoint_url and not _HTTP_URL.fullmatch(self.endpoint_url):
            raise ValueError(f"endpoint_url `{self.endpoint_url}` is not a URL such as https://s3.example.com:9000")
        return self


class RegistrySettings(Section):
    """Where versions are kept."""

    database_url: str = Field(
        default="",
        description="`sqlite:////path/noa.db` or `postgresql://user:password@host/database`, the password "
        "percent-encoded; empty: SQLite at `<state_dir>/noa.db`.",
    )
    artifact_dir: Path = Field(
        default=Path(), description="Folder of sealed model files; empty: `<state_dir>/artifacts`."
    )
    artifact_url: str = Field(
        default="", description="`s3://bucket/prefix`: sealed model files are in S3 instead of `artifact_dir`."
    )
    s3: S3Settings = Field(default_factory=S3Settings, description="How S3 is reached.")
    cache_dir: Path = Field(
        default=Path(),
        description="Folder of local copies of model files and of what was verified; empty: `<state_dir>/cache`.",
    )
    cache_max_bytes: StrictInt = Field(
        default=50 << 30, ge=1 << 20, description="Size above which the longest unused local copies go, bytes."
    )
    lock_timeout_s: StrictFloat = Field(
        default=60.0, gt=0, description="How long to wait for the database or another process, seconds."
    )
    clock_tolerance_s: StrictFloat = Field(
        default=2.0,
        ge=0,
        description="By how much the clocks of machines may differ before no alias moves: behind the ledger, seconds.",
    )
    signing: SigningSettings = Field(default_factory=SigningSettings)
    ledger_anchor: Path | None = Field(
        default=None,
        description="File outside of the database to which every move of an alias appends the ledger's newest hash.",
    )
    principals: dict[str, str] = Field(
        default={},
        description="Who may approve, by name: `ed25519:<base64>` or the path of a public key in PEM. "
        "With any, approvals must be signed.",
    )
    events_keep_days: StrictFloat = Field(
        default=30.0, ge=0, description="How long events are kept after every consumer has read them, days."
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """Show no password of the database."""
        for key, value in super().__repr_args__():
            yield key, mask_password(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place_for_artifacts(self) -> Self:
        if self.artifact_url and not _S3_URL.fullmatch(self.artifact_url):
            raise ValueError(f"artifact_url `{self.artifact_url}` is not a place in S3 such as s3://bucket/prefix")
        if self.artifact_url and self.artifact_dir != Path():
            raise ValueError("`artifact_dir` and `artifact_url` are both set; model files are in one place, keep one")
        if not self.artifact_url and self.s3 != S3Settings():
            raise ValueError("`registry.s3` is set, but `artifact_url` is not: it would have no effect")
        return self


class TrainingSettings(Section):
    """How jobs run."""

    jobs_dir: Path = Field(
        default=Path(), description="Folder of jobs and their checkpoints; empty: `<state_dir>/jobs`."
    )
    checkpoint_every_s: StrictFloat = Field(
        default=30.0, ge=0, description="Least time between checkpoints within an epoch, seconds."
    )
    keep_checkpoints: StrictInt = Field(default=2, ge=1, description="How many newest checkpoints of a job are kept.")
    threads: StrictInt = Field(
        default=0, ge=0, description="Compute threads of one job; 0: all cores divided by parallel jobs."
    )
    log_every_steps: StrictInt = Field(default=20, ge=1, description="Steps between two metric records.")
    latency_s: StrictFloat = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How long one batch size may be measured whose `p99` the gate limits; others take 2; seconds.",
    )


class ConversionSettings(Section):
    """How formats are written and compared."""

    opset: StrictInt = Field(default=20, ge=18, le=23, description="ONNX opset of exported graphs.")
    absolute_tolerance: StrictFloat = Field(
        default=1e-4, gt=0, description="Largest allowed absolute difference of float32 outputs between two formats."
    )
    relative_tolerance: StrictFloat = Field(
        default=1e-3, gt=0, description="Largest allowed difference relative to the native output's magnitude."
    )
    max_value_bytes: int = Field(
        default=4 << 30,
        ge=1 << 20,
        description="Largest value that an imported ONNX graph may compute, bytes; free axes count as small.",
    )
    max_work_s: StrictFloat = Field(
        default=900.0, gt=0, description="How long one import, or all runs of one comparison, may take, seconds."
    )
    max_work_bytes: int = Field(
        default=16 << 30,
        ge=1 << 20,
        description="How much more memory one run of an ONNX graph may take while models are compared, bytes.",
    )


class RollbackSettings(Section):
    """When an endpoint goes back by itself to the version before. Off unless one of the limits is set."""

    max_error_rate: StrictFloat | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Share of the requests that may fail in the model beyond the share of the version before.",
    )
    max_latency_ratio: StrictFloat | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="How many times the p99 of the version before the p99 of the new one may be.",
    )
    within_s: StrictFloat = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="How long after a swap the new version is judged, and the one before it kept in memory, seconds.",
    )
    min_requests: StrictInt = Field(
        default=200, ge=1, description="Requests of one worker that are enough to judge a version by."
    )

    @property
    def is_on(self) -> bool:
        """Whether there is a limit."""
        return self.max_error_rate is not None or self.max_latency_ratio is not None


class EndpointSettings(Section):
    """A name that clients call, and what answers."""

    model: str = Field(description="Which model answers: `name@alias` or `name/number`.")
    format: str = Field(default="onnx", description="Which format of the version computes.")
    rollback: RollbackSettings = Field(default_factory=RollbackSettings)

    @model_validator(mode="after")
    def _names_a_version(self) -> Self:
        try:
            reference = parse_reference(self.model)
        except InvalidInputError as exc:
            raise ValueError(str(exc)) from exc
        if reference.alias is None and reference.number is None:
            raise ValueError(f"`{self.model}` names no version; write `{self.model}@champion` or `{self.model}/1`")
        if self.rollback.is_on and reference.alias is None:
            raise ValueError(
                f"`{self.model}` never moves, so nothing rolls it back; name an alias, or leave out `rollback`"
            )
        return self


class PayloadLogSettings(Section):
    """What is kept of requests and answers for whoever watches the models."""

    folder: Path | None = Field(
        default=None,
        description="Folder of Parquet files with inputs and outputs of requests; none: nothing is kept.",
    )
    sample: StrictFloat = Field(default=0.1, ge=0, le=1, description="Share of the answered requests that is kept.")
    redact: dict[str, Literal["drop", "hash"]] = Field(
        default={},
        description="What is kept of inputs and outputs by name: `drop` nothing, `hash` a keyed hash per item.",
    )
    max_file_bytes: StrictInt = Field(
        default=16 << 20, ge=1024, le=1 << 30, description="Bytes of tensors after which a file is written."
    )
    max_file_s: StrictFloat = Field(
        default=60.0, gt=0, description="Time after which what was kept is written at the latest, seconds."
    )
    max_total_bytes: StrictInt = Field(
        default=1 << 30, ge=1024, description="Bytes that all files together may take; the oldest go."
    )

    @model_validator(mode="after")
    def _has_room_for_a_file(self) -> Self:
        if self.max_total_bytes < self.max_file_bytes:
            raise ValueError("`max_total_bytes` must have room for a file of `max_file_bytes`")
        return self


class ServingSettings(Section):
    """The inference server."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; anything but loopback needs keys.")
    port: Port = Field(default=3000, description="Port to listen on; 0: a free one.")
    grpc_port: Port | None = Field(
        default=None, description="Port for gRPC beside HTTP, on the same host (needs `noa[grpc]`); 0: a free one."
    )
    shared_memory: StrictBool = Field(
        default=False,
        description="Let clients on this machine pass tensors in /dev/shm; only on loopback, and any caller may then "
        "name any object there that belongs to the server's user.",
    )
    workers: StrictInt = Field(default=1, ge=1, le=256, description="Worker processes.")
    threads: StrictInt = Field(default=0, ge=0, description="Compute threads per worker; 0: cores divided by workers.")
    api_keys: tuple[SecretStr, ...] = Field(
        default=(), description="Keys that may do everything, beside those that `noa api-keys` makes."
    )
    keys_file: Path = Field(
        default=Path(),
        description="File of the keys that `noa api-keys` makes; empty: `<state_dir>/api-keys.json`. With keys in it, "
        "or in `api_keys`, a server answers nobody without one.",
    )
    allow_unauthenticated: StrictBool = Field(
        default=False,
        description="Answer anybody who reaches `host`, without a key; only where something else guards the port.",
    )
    quota_requests_per_s: StrictFloat | None = Field(
        default=None,
        gt=0,
        description="Requests per second that one client may send (a key; without keys an address), over all workers; "
        "more get 429 and Retry-After.",
    )
    quota_bytes_per_s: StrictInt | None = Field(
        default=None, ge=1, description="As `quota_requests_per_s`, bytes of request bodies per second."
    )
    quota_burst_s: StrictFloat = Field(
        default=2.0,
        gt=0,
        le=3600,
        description="A client that was silent may send its quota of so many seconds at once.",
    )
    jwt_jwks_file: Path | None = Field(
        default=None,
        description="JWKS file of an identity provider whose tokens (RS256, ES256) count as keys (needs `noa[jwt]`).",
    )
    jwt_issuer: str = Field(default="", description="`iss` that tokens must have.")
    jwt_audience: str = Field(default="", description="`aud` that tokens must hold: the name of this service there.")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the server's certificate and its chain: TLS for HTTP and gRPC."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the key of `tls_certificate`.")
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file of authorities: only clients with a certificate of theirs may connect (mutual TLS).",
    )
    client_ca: Path | None = Field(
        default=None,
        description="PEM file of authorities by which noa's own commands check the certificate of another server; "
        "none: the system's. The project's own server is known by its certificate.",
    )
    client_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate that noa's own commands show (mutual TLS)."
    )
    client_certificate_key: Path | None = Field(
        default=None, description="PEM file of the key of `client_certificate`."
    )
    client_key: SecretStr | None = Field(
        default=None,
        description="Key that noa's own commands call a server with; none: the first of `api_keys`. The project's own "
        "server needs none.",
    )
    poll_interval_s: StrictFloat = Field(
        default=0.5, gt=0, description="How often an alias is looked up for a swap, seconds."
    )
    swap_timeout_s: StrictFloat = Field(
        default=300.0,
        gt=0,
        description="How long all workers may take to have a new version ready before it is refused, seconds.",
    )
    lease_s: StrictFloat = Field(
        default=30.0,
        ge=1,
        description="How long a server that was killed still counts as one that needs its version, seconds.",
    )
    max_in_flight: StrictInt = Field(
        default=1024, ge=1, description="Requests computed or waiting at once; more get 503 and Retry-After."
    )
    max_in_flight_bytes: StrictInt = Field(
        default=512 << 20,
        ge=1,
        description="Bytes that the bodies of all requests at once may take, those over 64 KiB counted; more get 503.",
    )
    timeout_s: StrictFloat = Field(
        default=30.0, gt=0, description="Time after which a request is answered with 504, seconds."
    )
    max_body_bytes: StrictInt = Field(default=64 << 20, ge=1, description="Largest accepted request body, bytes.")
    max_batch_items: StrictInt = Field(
        default=4096, ge=1, description="Largest accepted size of the batch axis of one request."
    )
    batching: StrictBool = Field(
        default=True,
        description="Run requests that come at the same time as one batch, where that is measured to change no answer.",
    )
    p99_target_ms: StrictFloat = Field(
        default=100.0,
        gt=0,
        description="A batch in the queue is kept so small that waiting for one and running in the next takes no "
        "longer, milliseconds.",
    )
    max_queue_delay_us: StrictInt = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="How long a request waits for others while its model is free, microseconds.",
    )
    max_queue_items: StrictInt = Field(
        default=8192, ge=1, description="Items that may wait for slow models; more get 503 and Retry-After."
    )
    max_queue_bytes: StrictInt = Field(
        default=256 << 20, ge=1, description="Bytes of inputs that may wait for slow models; more get 503."
    )

    access_log: Path | None = Field(
        default=None, description="File to which a line of JSON is appended for each request; none: no access log."
    )
    access_log_sample: StrictFloat = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the answered requests that the access log tells of; those that were refused or that "
        "failed are always told of.",
    )

    trace_endpoint: str = Field(
        default="",
        description="Address of an OpenTelemetry collector for traces (OTLP over HTTP, needs `noa[trace]`), e.g. "
        "`http://127.0.0.1:4318/v1/traces`; empty: no traces.",
    )
    trace_sample: StrictFloat = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the requests that are traced, of those whose caller has not decided by `traceparent`.",
    )

    payload_log: PayloadLogSettings = Field(default_factory=PayloadLogSettings)

    @property
    def address(self) -> str:
        """The URL at which this machine reaches a server of these settings."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        scheme = "http" if self.tls_certificate is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def has_keys_file(self) -> bool:
        """Whether there is a place for a file of keys; false only without a project."""
        return self.keys_file != Path()

    def key_to_call_with(self) -> str | None:
        """Return the key that noa's own commands send, None if there is none."""
        keys = (self.client_key, *self.api_keys) if self.client_key is not None else self.api_keys
        return keys[0].get_secret_value() if keys else None

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        for certificate, key in (("tls_certificate", "tls_key"), ("client_certificate", "client_certificate_key")):
            if (getattr(self, certificate) is None) != (getattr(self, key) is None):
                raise ValueError(f"`serving.{certificate}` and `serving.{key}` go together; one of them is not set")
        if self.jwt_jwks_file is not None and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("`serving.jwt_jwks_file` needs `serving.jwt_issuer` and `serving.jwt_audience`")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("`serving.tls_client_ca` needs `serving.tls_certificate`")
        if self.tls_client_ca is not None and self.client_certificate is None:
            raise ValueError(
                "`serving.tls_client_ca` needs `serving.client_certificate`, by which noa itself asks whether the "
                "server is ready"
            )
        if self.trace_endpoint and not _is_web_address(self.trace_endpoint):
            raise ValueError("`serving.trace_endpoint` is no address such as http://127.0.0.1:4318/v1/traces")
        if self.shared_memory and not is_loopback(self.host):
            raise ValueError(f"`serving.shared_memory` needs a loopback address; host is `{self.host}`")
        if any(len(key.get_secret_value()) < 16 for key in self.api_keys):
            raise ValueError("every key in `serving.api_keys` must have at least 16 characters")
        return self


class GateSettings(Section):
    """What a version must show before an alias of its model may move to it. Equivalence is always required."""

    min_metrics: dict[str, StrictFloat] = Field(
        default={}, description="Least value of a metric on the test split, by name."
    )
    max_metrics: dict[str, StrictFloat] = Field(
        default={}, description="Largest value of a metric (losses, errors), by name."
    )
    max_regression: dict[str, StrictFloat] = Field(
        default={}, description="How much worse than the present holder of the alias a metric may be, by name."
    )
    directions: dict[str, Literal["higher", "lower"]] = Field(
        default={},
        description="Whether `higher` or `lower` values of a metric are better, where its name does not tell.",
    )
    datasets: tuple[Digest, ...] = Field(
        default=(), description="Digests of the test rows whose measurements count; empty: any rows."
    )
    known_dataset: StrictBool = Field(
        default=False,
        description="Refuse metrics of test rows that neither kept predictions, the version's own data nor the holder "
        "explain; unset: warn.",
    )
    confidence: StrictFloat | None = Field(
        default=None,
        gt=0.5,
        lt=1,
        description="Judge regressions by the worse end of a two-sided bootstrap interval of this confidence, from the "
        "predictions of both on the same rows; unset: by the measured values.",
    )
    resamples: StrictInt = Field(default=1000, ge=100, le=100_000, description="Draws of the bootstrap.")
    seed: StrictInt = Field(default=0, ge=0, description="Seed of the bootstrap's random rows.")
    slices: dict[str, dict[str, StrictFloat]] = Field(
        default={},
        description="Limit of a metric on a slice of the test rows, by slice (`*`: every slice) and metric; least "
        "value, or largest of a loss or error.",
    )
    slice_regression: dict[str, dict[str, StrictFloat]] = Field(
        default={}, description="As `max_regression`, by slice (`*`: every slice of the candidate) and metric."
    )
    max_latency_ms: dict[LatencyName, StrictFloat] = Field(
        default={}, description="Largest latency by `p50` or `p99` of one row, or `p99@32` of 32 rows, milliseconds."
    )
    max_size_bytes: StrictInt | None = Field(
        default=None, ge=1, description="Largest size of the served format, bytes."
    )
    require: tuple[EvidenceKind, ...] = Field(
        default=(), description="Kinds of evidence that must exist, and have passed where they judge."
    )
    approvals: StrictInt = Field(
        default=0, ge=0, le=100, description="How many principals other than the one who promotes must approve."
    )
    compatible: StrictBool = Field(
        default=False, description="Refuse a signature that breaks clients of the present holder of the alias."
    )
    allow_kept: StrictBool = Field(
        default=False,
        description="Let an alias move to a version that noa keeps and cannot run (a pickle, bare weights).",
    )
    check: str = Field(
        default="", description="Function of the project for what these rules cannot say: `policy.py:check`."
    )
    aliases: tuple[Alias, ...] = Field(default=(), description="Aliases this gate guards; empty: all.")

    @property
    def latency_batches(self) -> tuple[int, ...]:
        """The batch sizes whose latency is limited, in rows."""
        return tuple(sorted({int(name.partition("@")[2] or 1) for name in self.max_latency_ms}))

    @field_validator("check")
    @classmethod
    def _names_a_function(cls, text: str) -> str:
        file, _, function = text.rpartition(":")
        if text and (not file.endswith(".py") or not function.isidentifier()):
            raise ValueError(f"`{text}` names no function; write `policy.py:check`")
        return text

    @model_validator(mode="after")
    def _tails_hold_a_draw(self) -> Self:
        if self.confidence is not None and (self.resamples + 1) * (1 - self.confidence) / 2 < 1 - 1e-9:
            least = math.ceil(2 / (1 - self.confidence)) - 1
            raise ValueError(f"`confidence` {self.confidence:g} needs `resamples` of at least {least}")
        return self


class RetentionSettings(Section):
    """How long versions and files that nothing needs are kept."""

    grace_days: StrictFloat = Field(
        default=7.0, ge=0, le=3650, description="How long a deleted version can be restored, days."
    )
    keep_newest: StrictInt = Field(
        default=10, ge=1, description="`noa gc --policy`: how many newest versions of a model are always kept."
    )
    keep_days: StrictFloat = Field(
        default=90.0, ge=0, description="`noa gc --policy`: younger versions are always kept, days."
    )
    orphan_hours: StrictFloat = Field(
        default=24.0, ge=1, description="`noa gc --unknown`: how old sealed files that no version names must be, hours."
    )
    cache_days: StrictFloat = Field(
        default=30.0, ge=0, description="`noa gc`: how long a local copy was not used before it may go, days."
    )


class RecipeSettings(Section):
    """Where a recipe is."""

    path: str = Field(description="`recipe.py`, `recipe.py:name` or an import path `package.module:name`.")
    promote_to: Alias = Field(default="champion", description="Alias the flow promotes to.")
    backends: tuple[Literal["torch", "jax"], ...] = Field(
        default=("torch",), min_length=1, description="Backends the flow trains."
    )
    primary_metric: str = Field(
        default="accuracy", description="Metric by which the flow chooses between the backends."
    )


class FlowsSettings(Section):
    """Prefect: flows, schedules and the worker."""

    host: str = Field(default="127.0.0.1", description="Address of the managed Prefect server; loopback only.")
    port: Port = Field(default=4200, description="Port of the managed Prefect server; 0: a free one.")
    start_timeout_s: StrictFloat = Field(
        default=120.0,
        gt=0,
        description="How long `noa up` waits for a service to be healthy; what needs another one counts from then, "
        "seconds.",
    )
    stop_timeout_s: StrictFloat = Field(
        default=10.0, gt=0, description="How long `noa down` waits before it kills, seconds."
    )
    parallel_runs: StrictInt = Field(default=1, ge=1, description="Flow runs the worker executes at once.")

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        return _require_loopback(self, self.host, "flows.host")


class TrackingSettings(Section):
    """The MLflow user interface."""

    host: str = Field(default="127.0.0.1", description="Address of the MLflow UI; loopback only.")
    port: Port = Field(default=5000, description="Port of the MLflow UI; 0: a free one.")

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        return _require_loopback(self, self.host, "tracking.host")


class WebhookSettings(Section):
    """An address that is told of events, by signed HTTP requests."""

    url: str = Field(description="Where to post; `https`, or `http` with `allow_private`.")
    secret: SecretStr = Field(description="Key of the HMAC-SHA256 signature; at least 16 characters.")
    events: tuple[str, ...] = Field(
        default=(), description="Kinds of events to send, e.g. `alias.promoted` or `alias.*`; empty: all."
    )
    models: tuple[Name, ...] = Field(default=(), description="Models whose events to send; empty: all.")
    timeout_s: StrictFloat = Field(default=10.0, gt=0, le=300, description="Longest time of one request, seconds.")
    max_attempts: StrictInt = Field(
        default=12, ge=1, le=100, description="Attempts after which an event goes to the dead-letter list."
    )
    retry_base_s: StrictFloat = Field(
        default=2.0, gt=0, description="Wait after the first failure; it doubles, seconds."
    )
    retry_max_s: StrictFloat = Field(
        default=600.0,
        gt=0,
        description="Longest wait between two attempts, seconds, also where `Retry-After` asks for more.",
    )
    allow_private: StrictBool = Field(
        default=False, description="Whether the address may be private, loopback or link-local."
    )
    ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authority that signed the receiver's certificate; none: the system's.",
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """Show of the address no more than where it is."""
        for key, value in super().__repr_args__():
            yield key, mask_web_address(value) if key == "url" and isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if len(self.secret.get_secret_value()) < _SHORTEST_SECRET:
            raise ValueError(f"`secret` must have at least {_SHORTEST_SECRET} characters")
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid, parts = False, urlsplit("")
        if not valid or parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("`url` is not an address such as https://ci.example.com/noa, without user and fragment")
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url:
            raise ValueError("`url` holds characters that a URL must not hold; encode them")
        if parts.scheme == "http" and not self.allow_private:
            raise ValueError("`url` must begin with https://; plain http only inside your network, with allow_private")
        return self


class Settings(Section):
    """All settings of a project. `root` is the folder of `noa.toml`."""

    root: Path = Field(default=Path(), description="The project's folder; set by the loader.")
    project: ProjectSettings = Field(default_factory=ProjectSettings)
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    conversion: ConversionSettings = Field(default_factory=ConversionSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    flows: FlowsSettings = Field(default_factory=FlowsSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    endpoints: dict[Name, EndpointSettings] = Field(default={}, description="Endpoints by name.")
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    gates: dict[Name, GateSettings] = Field(default={}, description="Gates by model name.")
    webhooks: dict[Alias, WebhookSettings] = Field(default={}, description="Webhooks by name.")
    recipes: dict[Name, RecipeSettings] = Field(default={}, description="Recipes by model name.")

    @property
    def state_dir(self) -> Path:
        """Absolute folder of everything noa writes for this project."""
        return self.project.state_dir

    def resolved(self, root: Path) -> Self:
        """Return a copy with all paths absolute against `root` and the derived defaults filled in."""
        state = _absolute(self.project.state_dir, root)
        cache = self.registry.cache_dir
        jobs = self.training.jobs_dir
        signing = self.registry.signing
        anchor = self.registry.ledger_anchor
        private_key = None if signing.private_key is None else _absolute(signing.private_key, root)
        trusted_keys = tuple(_absolute(path, root) for path in signing.trusted_keys)
        return self.model_copy(
            update={
                "root": root,
                "project": self.project.model_copy(update={"state_dir": state}),
                "registry": self.registry.model_copy(
                    update={
                        "database_url": self.registry.database_url or f"sqlite:///{state / 'noa.db'}",
                        "artifact_dir": self._artifact_dir(state, root),
                        "cache_dir": state / "cache" if cache == Path() else _absolute(cache, root),
                        "signing": signing.model_copy(
                            update={"private_key": private_key, "trusted_keys": trusted_keys}
                        ),
                        "ledger_anchor": None if anchor is None else _absolute(anchor, root),
                        "principals": {
                            name: key if key.startswith(PUBLIC_KEY_PREFIX) else str(_absolute(Path(key), root))
                            for name, key in self.registry.principals.items()
                        },
                    }
                ),
                "gates": {name: _resolve_check(gate, root) for name, gate in self.gates.items()},
                "webhooks": {name: _resolve_ca(hook, root) for name, hook in self.webhooks.items()},
                "serving": _resolve_serving(self.serving, state, root),
                "training": self.training.model_copy(
                    update={"jobs_dir": state / "jobs" if jobs == Path() else _absolute(jobs, root)}
                ),
            }
        )

    def _artifact_dir(self, state: Path, root: Path) -> Path:
        given = self.registry.artifact_dir
        if self.registry.artifact_url:
            return Path()
        return state / "artifacts" if given == Path() else _absolute(given, root)


def _resolve_serving(serving: ServingSettings, state: Path, root: Path) -> ServingSettings:
    names = (
        "access_log",
        "jwt_jwks_file",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "client_ca",
        "client_certificate",
        "client_certificate_key",
    )
    given = {name: cast("Path | None", getattr(serving, name)) for name in names}
    paths: dict[str, object] = {name: _absolute(path, root) for name, path in given.items() if path is not None}
    folder = serving.payload_log.folder
    if folder is not None:
        paths["payload_log"] = serving.payload_log.model_copy(update={"folder": _absolute(folder, root)})
    keys = state / "api-keys.json" if serving.keys_file == Path() else _absolute(serving.keys_file, root)
    return serving.model_copy(update={**paths, "keys_file": keys})


def _resolve_ca(hook: WebhookSettings, root: Path) -> WebhookSettings:
    return hook if hook.ca_file is None else hook.model_copy(update={"ca_file": _absolute(hook.ca_file, root)})


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    has_extras = "@" in parts.netloc or bool(parts.query) or bool(parts.fragment)  # keys belong into no address
    return is_whole and not has_extras and text.isascii() and text.isprintable() and " " not in text


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(path: Path, root: Path) -> Path:
    return Path(path).expanduser() if Path(path).expanduser().is_absolute() else root / path


def _resolve_check(gate: GateSettings, root: Path) -> GateSettings:
    file, _, function = gate.check.rpartition(":")
    return gate.model_copy(update={"check": f"{_absolute(Path(file), root)}:{function}"}) if gate.check else gate


def _require_loopback(section: _SectionT, host: str, key: str) -> _SectionT:
    if not is_loopback(host):
        raise ValueError(f"`{key}` is `{host}`; this server has no authentication and listens on loopback only")
    return section
