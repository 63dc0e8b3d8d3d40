"""What can be set of the server: addresses, limits, keys, TLS, logs, and models that run code of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, cast

from pydantic import (
    Field,
    SecretStr,
    StrictBool,
    StrictFloat,
    StrictInt,
    model_validator,
)

from noa.settings.section import (
    Name,
    Port,
    Section,
    absolute,
    is_loopback,
    is_web_address,
)


class CodeSettings(Section):
    """Models that run code of their own (the format `mlflow`), each in a process beside the worker."""

    allow: tuple[Name, ...] = Field(
        default=(), description="Models whose code may run; each was also imported with `--allow-pickle`."
    )
    memory_bytes: StrictInt = Field(
        default=4 << 30, ge=64 << 20, description="Memory that the process of one such model may take, bytes."
    )
    start_s: StrictFloat = Field(
        default=60.0, gt=0, le=3600, description="How long such a process may take to load its model, seconds."
    )
    run_s: StrictFloat = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How long one run may take before the process is ended and started again, seconds.",
    )
    max_output_bytes: StrictInt = Field(
        default=256 << 20, ge=1024, description="Bytes that the outputs of one run may take."
    )


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
    device: Literal["auto", "cpu"] = Field(
        default="auto",
        description="Where models compute; `auto`: on a GPU where the runtime has one and answers there as on the CPU.",
    )
    torch_compile: StrictBool = Field(
        default=False,
        description="Compile models of the format `torch` with `torch.compile` when they are loaded (needs a C++ "
        "compiler); where that fails they run as before.",
    )
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
    jwt_quota_claim: str = Field(
        default="",
        description="Claim of tokens that holds a quota of their own: requests per second, or a table with "
        "`requests_per_s`, `burst_requests`, `bytes_per_s`, `burst_bytes`; empty: no claim counts.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the server's certificate and its chain: TLS for HTTP and gRPC."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the key of `tls_certificate`.")
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file of authorities: only clients with a certificate of theirs may connect (mutual TLS).",
    )
    tls_expiry_warning_days: StrictFloat = Field(
        default=14.0,
        ge=0,
        description="A `tls_certificate` that expires within so many days is warned about, in the log and in "
        "`/metrics`, days.",
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
    code: CodeSettings = Field(default_factory=CodeSettings)

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
        if self.trace_endpoint and not is_web_address(self.trace_endpoint):
            raise ValueError("`serving.trace_endpoint` is no address such as http://127.0.0.1:4318/v1/traces")
        if self.shared_memory and not is_loopback(self.host):
            raise ValueError(f"`serving.shared_memory` needs a loopback address; host is `{self.host}`")
        if any(len(key.get_secret_value()) < 16 for key in self.api_keys):
            raise ValueError("every key in `serving.api_keys` must have at least 16 characters")
        return self


def resolve_serving(serving: ServingSettings, state: Path, root: Path) -> ServingSettings:
    """Return the settings with absolute paths, and the default file of keys filled in."""
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
    paths: dict[str, object] = {name: absolute(path, root) for name, path in given.items() if path is not None}
    folder = serving.payload_log.folder
    if folder is not None:
        paths["payload_log"] = serving.payload_log.model_copy(update={"folder": absolute(folder, root)})
    keys = state / "api-keys.json" if serving.keys_file == Path() else absolute(serving.keys_file, root)
    return serving.model_copy(update={**paths, "keys_file": keys})
