"""Putting a registry back to where it was, wherever it is kept: a folder, a PostgreSQL database, a bucket of S3."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from noa.settings import RegistrySettings
from s3_server import stock_session

_DEADLINE_S = 20.0


@dataclass
class Backing:
    """Keeps copies of a whole registry under names, and puts one of them in its place."""

    settings: RegistrySettings
    state: Path
    in_child: Callable[[Callable[[], Any]], Any]
    _objects: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def keep(self, name: str) -> None:
        """Copy the registry as it is now; nobody may be using it."""
        copy_folder(self.state, self.state.with_name(name))
        if self._is_postgres:
            self.in_child(lambda: _copy_database(self.settings, source=None, target=name))
        if self.settings.artifact_url:
            self._objects[name] = self.in_child(lambda: _read_objects(self.settings))

    def put_back(self, name: str) -> None:
        """Make the registry what it was when `name` was kept."""
        copy_folder(self.state.with_name(name), self.state)
        if self._is_postgres:
            self.in_child(lambda: _copy_database(self.settings, source=name, target=None))
        if self.settings.artifact_url:
            self.in_child(lambda: _write_objects(self.settings, self._objects[name]))

    @property
    def _is_postgres(self) -> bool:
        return self.settings.database_url.startswith("postgresql")


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder as it is: two names of one file stay two names of one file."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()
    first: dict[int, Path] = {}
    for current, folders, files in os.walk(source):
        here = target / Path(current).relative_to(source)
        for name in folders:
            (here / name).mkdir()
        for name in files:
            original = Path(current) / name
            inode = original.stat().st_ino
            if inode in first:
                os.link(first[inode], here / name)
            else:
                shutil.copy2(original, here / name)
                first[inode] = here / name


def s3_objects(settings: RegistrySettings) -> set[str]:
    """Return the keys of all objects below the registry's prefix, and of uploads that nobody finished."""
    client, bucket, prefix = _s3(settings)
    keys = {key.removeprefix(prefix) for key in _list(client, bucket, prefix)}
    uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
    return keys | {f"upload of {upload['Key']}" for upload in uploads}


def _copy_database(settings: RegistrySettings, *, source: str | None, target: str | None) -> None:
    """Copy a database of the same server; None is the registry's own."""
    import psycopg

    url = make_url(settings.database_url).set(drivername="postgresql")
    names = {key: url.database if key is None else f"{url.database}_{key}" for key in (source, target)}
    with psycopg.connect(url.set(database="postgres").render_as_string(hide_password=False), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {names[target]} WITH (FORCE)".encode())
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                admin.execute(f"CREATE DATABASE {names[target]} TEMPLATE {names[source]} STRATEGY file_copy".encode())
                return
            except psycopg.errors.ObjectInUse:  # by a process that is gone, which the server has not noticed yet
                assert time.monotonic() < deadline


def _read_objects(settings: RegistrySettings) -> dict[str, str]:
    client, bucket, prefix = _s3(settings)
    keys = _list(client, bucket, prefix)
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read().hex() for key in keys}


def _write_objects(settings: RegistrySettings, objects: dict[str, str]) -> None:
    """Write what is missing or other; an object that was written in parts has no digest, and is told by its size."""
    client, bucket, prefix = _s3(settings)
    found = _list(client, bucket, prefix)
    for key in found.keys() - objects.keys():
        client.delete_object(Bucket=bucket, Key=key)
    for key, content in objects.items():
        body = bytes.fromhex(content)
        size, digest = found.get(key, (-1, ""))
        if size != len(body) or ("-" not in digest and digest != hashlib.md5(body, usedforsecurity=False).hexdigest()):
            client.put_object(Bucket=bucket, Key=key, Body=body)
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def _list(client: Any, bucket: str, prefix: str) -> dict[str, tuple[int, str]]:
    """Return size and digest (`ETag`: the MD5 of an object that was written at once) of every object."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    rows = [row for page in pages for row in page.get("Contents", ())]
    return {str(row["Key"]): (int(row["Size"]), str(row["ETag"]).strip('"')) for row in rows}


def _s3(settings: RegistrySettings) -> tuple[Any, str, str]:
    bucket, _, prefix = settings.artifact_url.removeprefix("s3://").partition("/")
    # The keys are in the environment, as for every process that is not the tests'.
    client = stock_session().client("s3", endpoint_url=settings.s3.endpoint_url, region_name=settings.s3.region)
    return client, bucket, f"{prefix}/" if prefix else ""
