"""S3, or what speaks its protocol, as an object store; needs the extra `s3` (obstore).

`create` is a put with `If-None-Match: *`, which the store itself judges: AWS S3, SeaweedFS, MinIO
and Ceph do. One that ignores it would overwrite; what is written under one name is the same batches
each time (`peerd.tier.writing`), so that even this loses nothing.

The library's own repetitions are off: `TierStore` repeats.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from peerd.tier.errors import (
    MissingObject,
    NoCredentials,
    NotConfigured,
    TierError,
    TierUnavailable,
)
from peerd.tier.store import LISTED_MAX, Listed

if TYPE_CHECKING:
    from obstore.store import S3Store

_MESSAGE_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """Where the bucket is and who asks. What is empty the library looks for in the environment, as
    `AWS_…`, or asks of the machine.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""
    timeout_ms: int


class S3Backend:
    """Objects in one bucket. Used on an event loop."""

    def __init__(self, options: S3Options) -> None:
        """Raises `NotConfigured`."""
        self._options = options
        self._store = _open(options)

    @property
    def name(self) -> str:
        """What people call it."""
        where = f" at {self._options.endpoint}" if self._options.endpoint else ""
        return f"s3://{self._options.bucket}{where}"

    async def create(self, key: str, data: bytes | bytearray) -> bool:
        """See `Backend`."""
        import obstore
        from obstore import exceptions

        try:
            await obstore.put_async(self._store, key, data, mode="create", use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return False
        except Exception as error:
            raise self._typed(error, key) from error
        return True

    async def read(self, key: str, begin: int, end: int) -> bytes:
        """See `Backend`."""
        import obstore

        try:
            return bytes(await obstore.get_range_async(self._store, key, start=begin, end=end))
        except Exception as error:
            raise self._typed(error, key) from error

    async def holds(self, key: str, begin: int, end: int, data: bytes | bytearray) -> bool:
        """See `Backend`."""
        import obstore

        try:
            found = await obstore.get_range_async(self._store, key, start=begin, end=end)
        except Exception as error:
            raise self._typed(error, key) from error
        with memoryview(found) as read:
            return len(read) == end - begin and data.startswith(read, begin)

    async def size_bytes(self, key: str) -> int:
        """See `Backend`."""
        import obstore

        try:
            return (await obstore.head_async(self._store, key))["size"]
        except Exception as error:
            raise self._typed(error, key) from error

    async def listed(self, prefix: str) -> list[Listed]:
        """See `Backend`."""
        import obstore

        found: list[Listed] = []
        try:
            async for page in obstore.list(self._store, prefix):
                found += [Listed(key=each["path"], size_bytes=each["size"]) for each in page]
                if len(found) >= LISTED_MAX:
                    break
        except Exception as error:
            raise self._typed(error, prefix) from error
        return found[:LISTED_MAX]

    async def folders(self, prefix: str) -> list[str]:
        """See `Backend`."""
        import obstore

        try:
            found = await obstore.list_with_delimiter_async(self._store, prefix)
        except Exception as error:
            raise self._typed(error, prefix) from error
        return [each.rstrip("/") for each in found["common_prefixes"][:LISTED_MAX]]

    async def remove(self, keys: Sequence[str]) -> None:
        """See `Backend`."""
        import obstore
        from obstore import exceptions

        try:
            for key in keys:
                try:
                    await obstore.delete_async(self._store, key)
                except (FileNotFoundError, exceptions.NotFoundError):
                    continue  # so it is removed
        except Exception as error:
            raise self._typed(error, keys[0]) from error

    def _typed(self, error: Exception, key: str) -> TierError:
        from obstore import exceptions

        # What follows is how the library holds its errors.
        text = " ".join(str(error).partition("Debug source:")[0].split())[:_MESSAGE_CHARACTERS_MAX]
        if isinstance(error, TierError):
            return error
        if "NoSuchBucket" in text:
            return NotConfigured(f"{self.name} does not exist: create the bucket, or mend tier.url")
        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            return MissingObject(f"{self.name}: {key} is not there")
        if _nobody_asks(text):
            return NoCredentials(
                f"nobody said who asks {self.name}: set tier.access_key_id_file and "
                "tier.secret_access_key_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in "
                "the environment of the process, or give the machine a role"
            )
        refused = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        if isinstance(error, (*refused, PermissionError)) or _tells_of_credentials(text):
            return NoCredentials(
                f"{self.name} refuses this peer: see tier.access_key_id_file and "
                f"tier.secret_access_key_file: {text}"
            )
        return TierUnavailable(f"{self.name}: {text}")


def _nobody_asks(text: str) -> bool:
    """Whether the library was given no credentials: then it asked the machine for those of a role,
    which it tells in words alone.
    """
    return any(
        asked in text for asked in ("169.254.169.254", "/latest/api/token", "/meta-data/iam")
    )


def _tells_of_credentials(text: str) -> bool:
    return "InvalidAccessKeyId" in text or "SignatureDoesNot" in text


def _open(options: S3Options) -> "S3Store":
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise NotConfigured(
            "tier.url names S3, which needs the extra s3, in the environment that runs this: "
            f"{sys.executable} -m pip install 'peerd[s3]'"
        ) from error
    settings: dict[str, Any] = {
        "endpoint": options.endpoint,
        "region": options.region or "us-east-1",
        "access_key_id": options.access_key_id,
        "secret_access_key": options.secret_access_key,
    }
    timeout = timedelta(milliseconds=options.timeout_ms)
    try:
        return S3Store(
            options.bucket,
            prefix=options.prefix or None,
            config={key: value for key, value in settings.items() if value},  # type: ignore[arg-type]
            client_options={
                "allow_http": options.endpoint.startswith("http://"),
                "connect_timeout": min(timeout, timedelta(seconds=5)),
                "timeout": timeout,
            },
            retry_config={"max_retries": 0, "retry_timeout": timeout},
            virtual_hosted_style_request=not options.endpoint,
        )
    except Exception as error:
        raise NotConfigured(f"tier.url: {' '.join(str(error).split())[:200]}") from error
