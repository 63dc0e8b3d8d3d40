"""What S3 and botocore refuse, told in noa's words. Knows botocore's exceptions; imports it only to catch them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from noa.errors import DependencyMissingError, StorageError

MISSING_CODES: Final = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_REMEDIES: Final = {
    "NoSuchBucket": "Create the bucket, or correct `registry.artifact_url`",
    "AccessDenied": "Allow these credentials to list, read, write and delete below `registry.artifact_url`",
    "403": "Allow these credentials to list, read, write and delete below `registry.artifact_url`",
    "InvalidAccessKeyId": "Correct `registry.s3.access_key`, or the AWS credentials of the environment",
    "SignatureDoesNotMatch": "Correct `registry.s3.secret_key`, or the AWS credentials of the environment",
    "ExpiredToken": "Renew the AWS credentials of the environment",
    "RequestTimeTooSkewed": "Set this machine's clock",
    "PermanentRedirect": "Set `registry.s3.region` to the bucket's region",
    "AuthorizationHeaderMalformed": "Set `registry.s3.region` to the bucket's region",
    "BadDigest": "The bytes changed on their way; run the same command again, nothing was lost",
    "InvalidDigest": "The bytes changed on their way; run the same command again, nothing was lost",
    "XAmzContentSHA256Mismatch": "The bytes changed on their way; run the same command again, nothing was lost",
    "XAmzContentChecksumMismatch": "The bytes changed on their way; run the same command again, nothing was lost",
    "QuotaExceeded": "Free some space in the bucket and run the same command again; nothing was lost",
}
_AGAIN: Final = "Check that S3 answers and run the same command again; nothing was lost"


@contextmanager
def translate_s3_errors(where: str) -> Generator[None, None, None]:
    """Turn an exception of botocore, or of the connection under it, into a `StorageError` that names the place.

    Raises:
        DependencyMissingError: botocore is not installed.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as exc:
        raise DependencyMissingError("boto3", extra="s3", purpose="keeping model files in S3") from exc
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as exc:
        code, message = error_code(exc), str(exc.response.get("Error", {}).get("Message", "")).strip()
        raise StorageError(
            f"S3 refused: {code}" + (f", {message}" if message and message != code else ""),
            where=where,
            remedy=_REMEDIES.get(code, _AGAIN),
            code=code,
        ) from exc
    except (BotoCoreError, HTTPError) as exc:
        raise StorageError(
            f"S3 cannot be used: {_summary(exc)}", where=where, remedy=_remedy(exc), code=type(exc).__name__
        ) from exc
    except OSError as exc:  # a connection that ends while a body is read
        if not isinstance(exc, ConnectionError | TimeoutError):
            raise
        raise StorageError(f"S3 cannot be used: {_summary(exc)}", where=where, remedy=_AGAIN) from exc


def error_code(error: Any) -> str:
    """Return the code of a `ClientError`, e.g. `NoSuchKey`."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def is_missing(error: StorageError) -> bool:
    """Tell whether S3 answered that there is no such object."""
    return error.facts.get("code") in MISSING_CODES


def is_lasting(error: StorageError) -> bool:
    """Tell whether trying again at once cannot help."""
    code = error.facts.get("code")
    return code in MISSING_CODES or code in _REMEDIES or code in ("NoCredentialsError", "PartialCredentialsError")


def _remedy(error: Exception) -> str:
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return "Set `registry.s3.access_key` and `secret_key`, or the AWS credentials of the environment"
    if type(error).__name__ in ("NoRegionError", "InvalidRegionError"):
        return "Set `registry.s3.region`"
    return _AGAIN


def _summary(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
