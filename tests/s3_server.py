"""A real S3 API for the tests: moto's server in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
from functools import cache
from http import HTTPStatus
from typing import IO, Any, cast
from urllib.request import Request, urlopen

from noa.settings import RegistrySettings, S3Settings
from noa_registry.artifacts import OWNER_MARK
from noa_registry.store_head import LEDGER_MARK

ACCESS_KEY = "tester"
SECRET_KEY = "not-so-secret"


class S3Server:
    """One server. Buckets are of one test each."""

    def __init__(self) -> None:
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it has told its port."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in cast("IO[str]", self._process.stderr):
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.url = match[0]
                break
        else:
            raise RuntimeError("moto's server did not start; install it with: pip install 'noa[dev]'")
        # It writes a line per request: somebody must read them, or it stops at a full pipe.
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._reader.join(30)

    @staticmethod
    def _read_log(log: IO[str]) -> None:
        with log:
            for _ in log:
                pass

    def client(self) -> Any:
        """Return a stock client."""
        return stock_session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def create_bucket(self) -> str:
        """Make a bucket and return its name; without a client of boto, whose making takes longer than all requests."""
        name = f"noa-{secrets.token_hex(6)}"
        with urlopen(Request(f"{self.url}/{name}", method="PUT"), timeout=30) as answer:
            assert answer.status == HTTPStatus.OK
        return name


@cache
def stock_session() -> Any:
    """Return boto3's session, which has read what it knows of S3: anew it takes longer than most tests."""
    from boto3.session import Session

    return Session()


def s3_settings(url: str, **changes: Any) -> S3Settings:
    """Return settings of a test's S3: few and short attempts, because the tests make them fail."""
    values: dict[str, Any] = {
        "endpoint_url": url,
        "region": "us-east-1",
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "connect_timeout_s": 5.0,
        "read_timeout_s": 10.0,
        "max_attempts": 3,
    }
    return S3Settings.model_validate({**values, **changes})


class StoredFiles:
    """The files of a registry as somebody sees them who goes past noa: in the folder, or in the bucket.

    Paths are relative to a unit. Whatever the store, the tests change files in the same way.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings

    def paths(self, name: str, uid: str) -> set[str]:
        """Return the paths of all files of a unit."""
        prefix = f"{name}/{uid}/"
        return {path.removeprefix(prefix) for path in self.all() if path.startswith(prefix)}

    def all(self) -> set[str]:
        """Return everything that is stored for models, sealed or not, and every mark of a writer."""
        return self._everything() - {OWNER_MARK, LEDGER_MARK}

    def mark(self, name: str = OWNER_MARK) -> bytes | None:
        """Return a mark of the store, None if there is none."""
        if name not in self._everything():
            return None
        if not self._settings.artifact_url:
            return (self._settings.artifact_dir / name).read_bytes()
        client, bucket, prefix = self._place()
        data = client.get_object(Bucket=bucket, Key=prefix + name)["Body"].read()
        client.close()
        return data

    def set_mark(self, data: bytes | None, name: str = OWNER_MARK) -> None:
        """Write a mark of the store, or remove it."""
        if not self._settings.artifact_url:
            (self._settings.artifact_dir / name).unlink(missing_ok=True)
            if data is not None:
                (self._settings.artifact_dir / name).write_bytes(data)
            return
        client, bucket, prefix = self._place()
        if data is None:
            client.delete_object(Bucket=bucket, Key=prefix + name)
        else:
            client.put_object(Bucket=bucket, Key=prefix + name, Body=data)
        client.close()

    def _everything(self) -> set[str]:
        if not self._settings.artifact_url:
            root = self._settings.artifact_dir
            found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
            return {path for path in found if not path.startswith(("_cache/", "_blobs/", "_runs/"))}
        client, bucket, prefix = self._place()
        rows = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = {str(row["Key"]) for page in rows for row in page.get("Contents", ())}
        uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
        client.close()
        return {key.removeprefix(prefix) for key in keys} | {f"upload of {upload['Key']}" for upload in uploads}

    def read(self, name: str, uid: str, path: str) -> bytes:
        """Return the bytes of a file."""
        if not self._settings.artifact_url:
            return (self._settings.artifact_dir / name / uid / path).read_bytes()
        client, bucket, prefix = self._place()
        data = client.get_object(Bucket=bucket, Key=f"{prefix}{name}/{uid}/{path}")["Body"].read()
        client.close()
        return data

    def write(self, name: str, uid: str, path: str, data: bytes) -> None:
        """Write a file, whatever is there."""
        if not self._settings.artifact_url:
            target = self._settings.artifact_dir / name / uid / path
            before = target.stat() if target.exists() else None
            if before is not None:
                target.chmod(0o644)
            target.write_bytes(data)
            if before is not None:  # as little as possible shows
                os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
                target.chmod(before.st_mode)
            return
        client, bucket, prefix = self._place()
        client.put_object(Bucket=bucket, Key=f"{prefix}{name}/{uid}/{path}", Body=data)
        client.close()

    def flip(self, name: str, uid: str, path: str) -> None:
        """Flip one bit in the middle."""
        data = bytearray(self.read(name, uid, path))
        data[len(data) // 2] ^= 1
        self.write(name, uid, path, bytes(data))

    def remove(self, name: str, uid: str, path: str) -> None:
        """Remove a file."""
        if not self._settings.artifact_url:
            (self._settings.artifact_dir / name / uid / path).unlink()
            return
        client, bucket, prefix = self._place()
        client.delete_object(Bucket=bucket, Key=f"{prefix}{name}/{uid}/{path}")
        client.close()

    def _place(self) -> tuple[Any, str, str]:
        bucket, _, prefix = self._settings.artifact_url.removeprefix("s3://").partition("/")
        s3 = self._settings.s3
        client = stock_session().client(
            "s3",
            endpoint_url=s3.endpoint_url,
            region_name=s3.region,
            aws_access_key_id=s3.access_key.get_secret_value(),
            aws_secret_access_key=s3.secret_key.get_secret_value(),
        )
        return client, bucket, f"{prefix}/" if prefix else ""
