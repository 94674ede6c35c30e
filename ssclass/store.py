"""S3: the few calls that everything else makes, with errors that name the bucket and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ssclass.errors import ChangedError, ObjectError, StoreError
from ssclass.settings import Settings
from ssclass.started import away, command, supervised

FORBIDDEN = ("AccessDenied", "403")  # the latter where the answer has no body, as to HEAD
OF_ONE_OBJECT = {
    **dict.fromkeys(
        ("InvalidObjectState", "ObjectNotInActiveTierError"),
        "it is in an archive class; restore it (`aws s3api restore-object`)",
    ),
    **dict.fromkeys(FORBIDDEN, "an access rule forbids it"),
    "KeyTooLongError": "its key is too long",
    "XMinioInvalidObjectName": "the server takes no such key",
    "MethodNotAllowed": "the server does not allow it with this object",
    "InvalidRequest": "the server cannot do it with this object (encrypted with a key of its own?)",
    "NoSuchKey": "there is no such object",
}
"""What S3 answers where the fault is one object's: asked again, it says the same. Keys of encryption: see `_of_one`."""


def _of_one(code: str) -> str | None:
    """What is wrong with one object by S3's code; None where the fault may be the server's, or everybody's."""
    return "its encryption key cannot be used" if code.startswith("KMS") else OF_ONE_OBJECT.get(code)


@dataclass(frozen=True)
class Listed:
    """One object of a listing: `size` in bytes, `modified` with its time zone."""

    key: str
    size: int
    etag: str
    modified: datetime


def session(settings: Settings) -> Any:
    """A boto3 session with the credentials in force: a profile's where one is named, else as AWS's tools find them."""
    import boto3
    import botocore.session

    core = botocore.session.Session(profile=settings.s3_profile)
    if settings.s3_credentials:
        core.set_config_variable("credentials_file", str(settings.s3_credentials))
    return boto3.session.Session(botocore_session=core, region_name=settings.s3_region)


def _nothing_named(settings: Settings, error: Exception) -> str | None:
    """What helps where no S3 is named and AWS knows nobody here: as after `ssclass init`."""
    from botocore.exceptions import NoCredentialsError, NoRegionError

    named = settings.s3_endpoint or settings.s3_region or settings.s3_profile
    if named or not isinstance(error, NoCredentialsError | NoRegionError):
        return None
    return (
        f"no S3 is running or named; `{command(settings, 'up')}` starts one on this machine, or name yours in "
        "ssclass.toml (s3_endpoint, or s3_region or s3_profile for AWS)"
    )


def at_url(settings: Settings, url: str) -> tuple[Store, str]:
    """Any bucket, reached with a workspace's own access, and the prefix that s3://bucket/prefix names in it.

    The prefix ends with a slash, or is empty.
    """
    at = urlsplit(url)
    prefix = at.path.strip("/")
    store = Store(settings.model_copy(update={"bucket": at.netloc, "s3_prefix": ""}))
    return store, f"{prefix}/" if prefix else ""


@lru_cache(8)
def _one_a_process(kind: type[Store], settings: Settings) -> Store:
    """The store that stands for one of another process, however often it comes from there."""
    return kind(settings)


class Store:
    """One bucket, or one folder in it: keys are relative to `place`. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bucket = settings.bucket
        self.place = settings.place
        self._prefix = f"{settings.s3_prefix}/" if settings.s3_prefix else ""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _one_a_process, (type(self), self.settings)  # a client stays where it is

    def full(self, key: str) -> str:
        """The key as S3 has it, from the top of the bucket."""
        return self._prefix + key

    @cached_property
    def client(self) -> Any:
        """The boto3 client; retries five times, with the pauses of its standard mode."""
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        at = self.settings
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=32,
            s3={"addressing_style": "path"} if at.s3_endpoint else None,  # no wildcard DNS on loopback
        )
        if not supervised(at) and (said := away(at, "s3_endpoint")):  # known at once; botocore would try for seconds
            raise StoreError(f"s3://{self.place}: {said}")
        with self._named():
            try:
                return session(at).client("s3", endpoint_url=at.s3_endpoint, config=config)
            except BotoCoreError as error:
                raise StoreError(f"S3: {error}; check s3_profile in ssclass.toml and the AWS configuration") from error

    def list(self, prefix: str, *, delimiter: str = "") -> Iterator[Listed]:
        """Every object under a prefix, page by page, in key order."""
        with self._named(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.full(prefix), Delimiter=delimiter
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield Listed(self._short(item["Key"]), item["Size"], item["ETag"].strip('"'), item["LastModified"])

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders directly under a prefix."""
        with self._named(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.full(prefix), Delimiter="/"
            )
            return [
                item["Prefix"][len(self.full(prefix)) : -1] for page in pages for item in page.get("CommonPrefixes", ())
            ]

    def head(self, key: str) -> Listed | None:
        """What a listing would say of one object; None when there is none."""
        with self._named(key):
            found = self._absent_is_none(lambda: self.client.head_object(Bucket=self.bucket, Key=self.full(key)))
            # JuiceFS's gateway gives folders no ETag.
            etag = (found or {}).get("ETag", "").strip('"')
            return found and Listed(key, found["ContentLength"], etag, found["LastModified"])

    def get(self, key: str, *, limit: int | None = None, etag: str | None = None) -> bytes | None:
        """The bytes of an object, at most `limit` of them; None when there is none.

        ChangedError where it is no longer the one with this `etag`.
        """
        with self._named(key):
            found = self._absent_is_none(lambda: self.client.get_object(Bucket=self.bucket, Key=self.full(key)))
            if found is None:
                return None
            with found["Body"] as body:
                there = found.get("ETag", "").strip('"')
                if etag and there and there != etag:
                    raise ChangedError(f"s3://{self.place}/{key}: written again while it was read; try again")
                return bytes(body.read(limit))

    def get_range(self, key: str, start: int, length: int, etag: str) -> bytes:
        """`length` bytes from `start`; StoreError when the object is gone, or is no longer the one with this ETag."""
        with self._named(key):
            found = self.client.get_object(
                Bucket=self.bucket, Key=self.full(key), Range=f"bytes={start}-{start + length - 1}", IfMatch=f'"{etag}"'
            )
            with found["Body"] as body:
                return bytes(body.read())

    def put(self, key: str, body: bytes | BinaryIO) -> None:
        """Write an object, from memory or from an open file."""
        with self._named(key):
            self.client.put_object(Bucket=self.bucket, Key=self.full(key), Body=body)

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the bucket, on the server."""
        with self._named(source):
            self.client.copy_object(
                Bucket=self.bucket,
                Key=self.full(target),
                CopySource={"Bucket": self.bucket, "Key": self.full(source)},
            )

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        with self._named(key):
            self.client.delete_object(Bucket=self.bucket, Key=self.full(key))

    def versions(self, prefix: str) -> Iterator[tuple[str, str, int]]:
        """(key, version id, bytes) of every version under a prefix; the id is empty where the server knows none.

        Without versioning S3 calls the one version of an object "null", and so it goes on calling those that were
        there before versioning was turned on: only that id names them then.
        """
        for key, version, size in self._versions(prefix):
            if size is not None:
                yield key, version, size

    def _versions(self, prefix: str) -> Iterator[tuple[str, str, int | None]]:
        """The same, with the markers of deletions, which have no size."""
        from botocore.exceptions import ClientError

        with self._named(prefix):
            try:
                pages = self.client.get_paginator("list_object_versions").paginate(
                    Bucket=self.bucket, Prefix=self.full(prefix)
                )
                for page in pages:
                    for kind in ("Versions", "DeleteMarkers"):
                        for item in page.get(kind, ()):
                            yield self._short(item["Key"]), item["VersionId"], item.get("Size")
            except ClientError as error:
                if error.response["Error"]["Code"] != "NotImplemented":
                    raise
                for found in self.list(prefix):
                    yield found.key, "", found.size

    def get_version(self, key: str, version: str) -> bytes:
        """The bytes of one version of an object."""
        with self._named(key):
            which = {"VersionId": version} if version else {}
            with self.client.get_object(Bucket=self.bucket, Key=self.full(key), **which)["Body"] as body:
                return bytes(body.read())

    def erase(self, key: str, version: str | None = None) -> None:
        """Remove a version of an object, or all of them, leaving no older one behind.

        With the last one go the markers of its deletion: they would keep the key, which may name a person or a photo.
        """
        there = [(each, size) for name, each, size in list(self._versions(key)) if name == key]
        # Of a server without versions, notes of older versions of ssclass say "null", too.
        gone = [each for each, size in there if size is not None and version in (None, each, each or "null")]
        if len(gone) == sum(size is not None for _, size in there):
            gone += [each for each, size in there if size is None]
        for each in gone:
            with self._named(key):
                which = {"VersionId": each} if each else {}
                self.client.delete_object(Bucket=self.bucket, Key=self.full(key), **which)

    def make_bucket(self) -> None:
        """Create the bucket unless it is there."""
        with self._named():
            region = self.client.meta.region_name
            place = (
                {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            )
            with suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
                self.client.create_bucket(Bucket=self.bucket, **place)

    def lifecycle(self) -> tuple[dict[str, Any], ...]:
        """The bucket's lifecycle rules."""
        from botocore.exceptions import ClientError

        with self._named():
            try:
                return tuple(self.client.get_bucket_lifecycle_configuration(Bucket=self.bucket)["Rules"])
            except ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchLifecycleConfiguration", "NotImplemented"):
                    return ()
                raise

    def set_lifecycle(self, rules: Sequence[dict[str, Any]]) -> bool:
        """Replace the bucket's lifecycle rules; False where the server has no such thing, as JuiceFS's gateway."""
        from botocore.exceptions import ClientError

        with self._named():
            try:
                self.client.put_bucket_lifecycle_configuration(
                    Bucket=self.bucket, LifecycleConfiguration={"Rules": [*rules]}
                )
            except ClientError as error:
                if error.response["Error"]["Code"] == "NotImplemented":
                    return False
                raise
            return True

    def _short(self, key: str) -> str:
        return key[len(self._prefix) :]

    @staticmethod
    def _absent_is_none(call: Any) -> Any:
        from botocore.exceptions import ClientError

        try:
            return call()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                return None
            raise

    @contextmanager
    def _named(self, key: str = "") -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        at = f"s3://{self.place}/{key}"
        server = self.settings.s3_endpoint or "AWS"
        try:
            yield
        except ClientError as error:
            code = error.response["Error"].get("Code", "?")
            if code == "NoSuchBucket":
                raise StoreError(
                    f"{at}: {server} has no bucket {self.bucket!r}; make it with `ssclass bucket setup`, or correct "
                    "bucket in ssclass.toml"
                ) from error
            if key and (said := _of_one(code)):
                raise ObjectError(
                    f"{at}: {server} answered {code}: {said}; check the bucket's policy and the credentials", code
                ) from error
            raise StoreError(
                f"{at}: {server} answered {code}; check the bucket's policy and the credentials"
            ) from error
        except BotoCoreError as error:
            if said := away(self.settings, "s3_endpoint") or _nothing_named(self.settings, error):
                raise StoreError(f"{at}: {said}") from error
            raise StoreError(
                f"{at}: {server} cannot be used ({error}); check s3_endpoint in ssclass.toml or SSCLASS_S3_ENDPOINT, "
                "and the credentials"
            ) from error
