"""The tier of one peer: made from its settings, and asked about shards of the map.

Must not: write anything (`peerd.daemon.uploader` does).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from peerd.core.batch import PlacedBatch
from peerd.core.chunks import Chunk, Cut, find_cut
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset
from peerd.core.shard_map import Shard
from peerd.daemon import config
from peerd.tier.directory import DirectoryBackend
from peerd.tier.errors import MissingObject, NotConfigured, TierError
from peerd.tier.heirs import owned
from peerd.tier.keys import KeyRing, exposed, read_keys
from peerd.tier.manifest import Manifest, prefix_of
from peerd.tier.reader import TierReader
from peerd.tier.s3 import S3Backend, S3Options
from peerd.tier.store import Backend, TierStore

# limit: bytes of a file with a credential
_CREDENTIAL_BYTES_MAX = 4_096
# limit: shards of the map by whose manifests a store is known for one that has none yet
_KNOWN_BY_MAX = 4


class Tier:
    """Used on an event loop. `cluster_id` is asked when it is needed: it comes with the map."""

    def __init__(
        self, store: TierStore, keys: KeyRing, reader: TierReader, cluster_id: Callable[[], str]
    ) -> None:
        """Use `open_tier`."""
        self.store = store
        self.keys = keys
        self.reader = reader
        self._cluster_id = cluster_id
        self.charged: Callable[[int], object] = lambda _: None
        """Told how many bytes a reader got; background work waits for them. Set by the peer."""
        self.read_errors: Counter[str] = Counter()
        """Reads that were not given what they asked for, by code; since the start."""

    @property
    def cluster_id(self) -> str:
        """The cluster whose objects these are; "" while it is not known."""
        return self._cluster_id()

    async def owned(self) -> tuple[str, ...]:
        """The clusters whose objects are this one's, beside its own; to be asked right before
        anything is removed, and shortly before anything is added. Raises `Inherited`, `TierError`.
        """
        return await owned(self.store, self.cluster_id)

    async def known(self, entries: Iterable[Shard]) -> None:
        """See that this is the store of which the map tells: that it has the manifest of one of
        these shards, or that the map names none of them.

        A directory whose file system is not mounted takes all that it is given, and gives it back;
        once it is mounted nobody sees that again. So does a bucket of another name. Raises
        `MissingObject` if it is another store, `TierError`.
        """
        named = (
            f"{prefix_of(self.cluster_id, entry.log, entry.shard)}/{entry.tier.manifest}"
            for entry in entries
            if entry.tier is not None and entry.tier.manifest
        )
        missing: list[str] = []
        # All of them now: the map may change meanwhile.
        for key in list(islice(named, _KNOWN_BY_MAX)):
            try:
                await self.store.size_bytes(key)
            except MissingObject:
                missing.append(key)
            else:
                return
        if missing:
            raise MissingObject(
                f"{self.store.name} does not have {missing[0]}, which the map names: nothing is "
                "added to it. Is its file system mounted, and tier.url that of the other peers?"
            )

    async def manifest(self, entry: Shard) -> Manifest:
        """What the map says is in the tier of a shard. Raises `TierError`."""
        if entry.tier is None or not entry.tier.manifest:
            raise MissingObject(f"the map names no manifest of shard {entry.shard}")
        return await self.reader.manifest(
            self.cluster_id, entry.log, entry.shard, entry.tier.manifest
        )

    async def read(
        self, entry: Shard, epoch: Epoch, offset: Offset, stop: Offset, bytes_max: int
    ) -> list[PlacedBatch]:
        """See `peerd.transport.read_source.ColdSource`."""
        with self._counted():
            listed = await self.manifest(entry)
            batches = await self.reader.read(listed, epoch, offset, stop, bytes_max)
        self.charged(sum(len(batch.payload) for batch in batches))
        return batches

    async def find_time(
        self, entry: Shard, begin: Offset, end: Offset, timestamp_ms: int
    ) -> Offset:
        """See `peerd.transport.read_source.ColdSource`."""
        with self._counted():
            return await self.reader.find_time(await self.manifest(entry), begin, end, timestamp_ms)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except TierError as error:
            self.read_errors[error.code] += 1
            raise

    async def find_cut(
        self, entry: Shard, epoch: Epoch, hot: Cut, *, before: Offset, keep_bytes: int
    ) -> Cut:
        """Where a segment may be cut that stores do not have from its begin on: `hot` is what a
        store found of it, and there was no cut in it. Raises `TierError`.
        """
        segments = (*entry.sealed, entry.open)
        begin = next((each.begin for each in segments if each.epoch == epoch), None)
        first = Offset(max(begin or FIRST_OFFSET, entry.kept_from))
        if first >= entry.trimmed_to or begin is None:
            return hot
        chunks = [
            Chunk(end=each.end, payload_bytes=each.payload_bytes)
            for each in (await self.manifest(entry)).entries
            if each.epoch == epoch and first < each.end <= entry.trimmed_to
        ]
        return find_cut(
            reversed(chunks),
            first=first,
            uncut_bytes=hot.kept_bytes,
            before=before,
            keep_bytes=keep_bytes,
        )


def open_tier(settings: "config.Tier", cluster_id: Callable[[], str]) -> Tier | None:
    """The tier that a peer was given; None if it was given none. Raises `NotConfigured`."""
    if not settings.url:
        return None
    keys = read_keys(settings.key_files)
    store = TierStore(
        _backend(settings), deadline_ms=settings.deadline_ms, attempts=settings.attempts
    )
    return Tier(store, keys, TierReader(store, keys, cache_bytes=settings.cache_bytes), cluster_id)


def exposed_secrets(settings: "config.Tier") -> list[Path]:
    """The files with keys and credentials that everybody on this host may read."""
    credentials = (settings.access_key_id_file, settings.secret_access_key_file)
    return exposed([*settings.key_files, *(each for each in credentials if each is not None)])


def _backend(settings: "config.Tier") -> Backend:
    url = urlsplit(settings.url)
    if url.scheme == "file":
        return DirectoryBackend(Path(unquote(url.path)))
    return S3Backend(
        S3Options(
            bucket=url.netloc,
            prefix=url.path.strip("/"),
            endpoint=settings.endpoint,
            region=settings.region,
            access_key_id=_credential(settings.access_key_id_file),
            secret_access_key=_credential(settings.secret_access_key_file),
            timeout_ms=settings.deadline_ms,
        )
    )


def _credential(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        with file.open("rb") as opened:
            return opened.read(_CREDENTIAL_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotConfigured(f"the credential {file} cannot be read: {error}") from error
