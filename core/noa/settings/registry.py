"""What can be set of the registry: stores, signing, gates, retention and webhooks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
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
from noa.settings.section import (
    Alias,
    Name,
    Section,
    absolute,
)

_HTTP_URL = re.compile(r"https?://[^/\s?#@]+/?")
# The rules for names of buckets; a prefix of plain parts, so that every key is also a path.
_S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[A-Za-z0-9._=-]+)*/?")

PUBLIC_KEY_PREFIX = "ed25519:"
_SHORTEST_SECRET = 16

LatencyName = Annotated[str, Field(pattern=r"^p(50|99)(@[1-9][0-9]*)?$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
EvidenceKind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]


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


def resolve_webhook(hook: WebhookSettings, root: Path) -> WebhookSettings:
    """Return a webhook with absolute paths."""
    return hook if hook.ca_file is None else hook.model_copy(update={"ca_file": absolute(hook.ca_file, root)})


def resolve_gate(gate: GateSettings, root: Path) -> GateSettings:
    """Return a gate with absolute paths."""
    file, _, function = gate.check.rpartition(":")
    return gate.model_copy(update={"check": f"{absolute(Path(file), root)}:{function}"}) if gate.check else gate
