"""An OCI image layout (image-spec "Image Layout") as a source and a sink of images.

    DIR/oci-layout              the version
    DIR/index.json              what is tagged: `org.opencontainers.image.ref.name`; its writers lock DIR
    DIR/blobs/sha256/HEX        everything else; names come from digests only, so no path can lead out of DIR

Files are written to a temporary name, fsynced and renamed, so a file under its final name is complete. A crash leaves `.tmp-*`
files, which nobody reads.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from lazyfs.errors import BadAnswer, InvalidManifest, LazyfsError, LocalError, NotFound, show
from lazyfs.format.digest import Digest, check, parse_digest
from lazyfs.format.foreign_json import encode, fields, replaced
from lazyfs.format.manifest import DOCUMENT_TYPES, MAX_DOCUMENT, OCI_INDEX, Index, parse_document
from lazyfs.source.foreign import BlobRange, ForeignBlobs
from lazyfs.source.protocol import Document, ImageSource, RangeStream

REF_NAME: Final = "org.opencontainers.image.ref.name"

_OWN_NAMES: Final = frozenset({"oci-layout", "index.json", "blobs"})
_COPY_STEP: Final = 4 << 20
_MAX_INDEX: Final = 16 << 20
"""Bytes of index.json: a layout may hold more images than an index in a registry may."""
_MOST_NAMES: Final = 20
"""Names that are listed when an image is not found."""
_LOCK_DEADLINE: Final = 30.0
_LOCK_PAUSE: Final = 0.05


class FileRange:
    """A RangeStream over an open file. Reads in a thread."""

    def __init__(self, fd: int, what: str, start: int, end: int) -> None:
        self._fd = fd
        self._what = what
        self._start = start
        self._position = start
        self._end = end

    @property
    def received(self) -> int:
        """See RangeStream."""
        return self._position - self._start

    async def receive_exactly(self, count: int) -> bytearray:
        """See RangeStream."""
        if count > self._end - self._position:
            raise BadAnswer(f"{self._what}: the range ends before what is wanted from it")
        buffer = bytearray(count)
        await trio.to_thread.run_sync(self._fill, memoryview(buffer))
        self._position += count
        return buffer

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], self._position + done)
            if not got:
                raise BadAnswer(f"{self._what} became shorter while it was read")
            done += got


class Layout:
    """ImageSource and ImageSink over one directory, which need not exist before something is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._foreign = ForeignBlobs()

    @property
    def name(self) -> str:
        """`oci:DIR`."""
        return f"oci:{self._path}"

    @property
    def authority(self) -> str:
        """`oci:DIR`: the directory itself."""
        return self.name

    async def document(self, reference: str) -> Document:
        """See ImageSource. `""` is the only image of the layout, if there is just one."""
        return await trio.to_thread.run_sync(self._document, reference)

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        """See ImageSource."""
        return await trio.to_thread.run_sync(self._small_blob, digest, limit)

    async def connect_ahead(self, count: int) -> None:
        """See ImageSource. Nothing to do for local files."""

    def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AbstractAsyncContextManager[RangeStream]:
        """See ImageSource. A copy to a layout may leave out what is at a URL: skopeo's does."""
        opened = self._open_range(digest, size, start, end)
        return self._foreign.open(BlobRange(digest, size, start, end, urls, deadline), opened) if urls else opened

    @asynccontextmanager
    async def _open_range(self, digest: Digest, size: int, start: int, end: int) -> AsyncIterator[FileRange]:
        what = f"blob {digest} of {self.name}"
        fd = await trio.to_thread.run_sync(_open_file, self.blob_path(digest), what)
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise BadAnswer(f"{what} has {found} bytes instead of {size}", hint="The layout is damaged: copy the image again")
            yield FileRange(fd, what, start, end)
        finally:
            os.close(fd)

    def distrust(self, digest: Digest) -> None:
        """See ImageSource: the file is read again."""
        self._foreign.distrust(digest)

    async def has_blob(self, digest: Digest, size: int) -> bool:
        """See ImageSink. A file of another size counts as missing, and is replaced when the blob is written."""
        return _size(self.blob_path(digest)) == size

    async def mount_blob(self, digest: Digest, size: int, origin: ImageSource) -> bool:
        """See ImageSink. From another layout, by a hard link or a copy."""
        if not isinstance(origin, Layout):
            return False
        return await trio.to_thread.run_sync(self._adopt, digest, size, origin.blob_path(digest))

    async def put_blob(self, digest: Digest, path: Path, progress: Callable[[int], None]) -> None:
        """See ImageSink. The caller has hashed the file. Cancelled: nothing is left behind."""
        with _writing(self._path):
            await trio.to_thread.run_sync(self._create)
            size = path.stat().st_size
            with path.open("rb") as source, _replacing(self.blob_path(digest)) as target:
                done = 0
                while done < size:
                    step = partial(os.sendfile, target, source.fileno(), done, min(_COPY_STEP, size - done))
                    got = await trio.to_thread.run_sync(step)
                    if not got:
                        raise LocalError(f"{path} became shorter while it was copied to {self.name}")
                    done += got
                    progress(got)
                await trio.to_thread.run_sync(os.fsync, target)

    async def put_document(self, reference: str, document: Document) -> None:
        """See ImageSink. A tag (or `""`) is entered in index.json; under a digest it is only a blob."""
        check(document.data, document.digest, f"the manifest for {self.name}")
        with _writing(self._path):
            await trio.to_thread.run_sync(self._create)
            await trio.to_thread.run_sync(_write, self.blob_path(document.digest), document.data)
            if not reference.startswith("sha256:"):
                async with self._locked():
                    await trio.to_thread.run_sync(self._enter, reference, document)

    async def aclose(self) -> None:
        """See ImageSource."""
        await self._foreign.aclose()

    def blob_path(self, digest: Digest) -> Path:
        """The blob's path, whether it exists or not."""
        return self._path / "blobs" / "sha256" / parse_digest(digest)[7:]

    def _document(self, reference: str) -> Document:
        index = self._index()
        if reference.startswith("sha256:"):
            digest = parse_digest(reference, f"the reference to {self.name}")
            media_type = next((entry.media_type for entry in index.manifests if entry.digest == digest), "")
            return Document(media_type, digest, self._small_blob(digest, MAX_DOCUMENT))
        found = [entry for entry in index.manifests if not reference or entry.annotations.get(REF_NAME) == reference]
        if not found or (len(found) > 1 and not reference):
            raise self._not_found(index, reference, len(found))
        found.sort(
            key=lambda entry: entry.media_type not in DOCUMENT_TYPES
        )  # of several entries with one name, skopeo uses the first that it understands
        return Document(found[0].media_type, found[0].digest, self._small_blob(found[0].digest, MAX_DOCUMENT))

    def _not_found(self, index: Index, reference: str, count: int) -> LazyfsError:
        for entry in index.unusable:
            if not count and entry.annotations.get(REF_NAME, "") == reference:
                return InvalidManifest(entry.reason, hint="Copy the image again, with sha256 digests")
        names = sorted({entry.annotations.get(REF_NAME, str(entry.digest)) for entry in index.manifests})
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        there = ", ".join(show(name)[1:-1] for name in names[:_MOST_NAMES]) + more
        missing = f"{self.name} has no image {show(reference)}" if reference else f"{self.name} has {count} images"
        return NotFound(f"{missing}; its images: {there or 'none'}", hint="Name one of them: oci:DIR:TAG or oci:DIR@DIGEST")

    def _index(self) -> Index:
        if not (self._path / "oci-layout").is_file():
            raise NotFound(f"{self._path} is not an OCI layout: it has no file oci-layout")
        path = self._path / "index.json"
        parsed = parse_document(OCI_INDEX, _read_small(path, str(path), _MAX_INDEX), str(path), _MAX_INDEX)
        if not isinstance(parsed, Index):
            raise InvalidManifest(f"{path} is not an index")
        return parsed

    def _small_blob(self, digest: Digest, limit: int) -> bytes:
        what = f"blob {digest} of {self.name}"
        data = _read_small(self.blob_path(digest), what, limit)
        check(data, digest, what)
        return data

    def _create(self) -> None:
        """Make the directory a layout. A directory with other content is refused."""
        if (self._path / "oci-layout").exists():
            return
        if self._path.exists() and not all(entry in _OWN_NAMES or entry.startswith(".tmp-") for entry in os.listdir(self._path)):
            raise LocalError(f"{self._path} holds something that is not an OCI layout", hint="Name an empty or a new directory")
        (self._path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        _write(self._path / "oci-layout", _encode({"imageLayoutVersion": "1.0.0"}))

    def _enter(self, tag: str, document: Document) -> None:
        """Point `tag` to the document. All other entries stay as they are."""
        path = self._path / "index.json"
        raw: Mapping[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        others: list[Mapping[str, Any]] = []
        if path.exists():
            raw = self._index().raw
            others = [other for other in fields(raw, ("manifests",)).get("manifests", []) if _tag(other) != tag]
        entry: dict[str, Any] = {"mediaType": document.media_type, "digest": document.digest, "size": len(document.data)}
        if tag:
            entry["annotations"] = {REF_NAME: tag}
        _write(path, _encode(replaced(raw, {"manifests": [*others, entry]})))

    def _adopt(self, digest: Digest, size: int, source: Path) -> bool:
        if _size(source) != size:
            return False
        with _writing(self._path):
            self._create()
            target = self.blob_path(digest)
            temporary = _temporary(target)
            try:
                os.link(source, temporary)
            except OSError:  # another disk, another owner, too many links: in any case, a copy works
                return self._copy(source, target, size)
            try:
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)  # rename leaves it if both are the same file already
            _sync_directory(target.parent)
        return True

    @staticmethod
    def _copy(source: Path, target: Path, size: int) -> bool:
        with source.open("rb") as file, _replacing(target) as fd:
            done = 0
            while done < size and (got := os.sendfile(fd, file.fileno(), done, _COPY_STEP)):
                done += got
            os.fsync(fd)
            if done != size:
                raise LocalError(f"{source} changed while it was copied")
        return True

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Lock out other writers of index.json, in any process."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with trio.move_on_after(_LOCK_DEADLINE) as scope:
                while True:
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await trio.sleep(_LOCK_PAUSE)
            if scope.cancelled_caught:
                raise LocalError(f"another process has kept {self._path} locked for {_LOCK_DEADLINE:g} s")
            yield
        finally:
            os.close(fd)


def _tag(entry: Mapping[str, Any]) -> str:
    annotations = fields(entry, ("annotations",)).get("annotations", {})
    return annotations.get(REF_NAME) or ""


def _encode(value: Any) -> bytes:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
    except RecursionError:  # a field of another program may be nested deeply
        return encode(value) + b"\n"


def _size(path: Path) -> int:
    """Bytes of a regular file; -1 for anything else."""
    try:
        found = path.stat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _open_file(path: Path, what: str) -> int:
    try:
        # Without O_NONBLOCK, a FIFO in place of a blob would block the thread forever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"{what} is not there: {path} does not exist") from error
    except OSError as error:
        raise LocalError(f"cannot read {what} from {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadAnswer(f"{what} cannot be read: {path} is not a regular file")
    return fd


def _read_small(path: Path, what: str, limit: int) -> bytes:
    with open(_open_file(path, what), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidManifest(f"{what} has over {limit} bytes")
    return data


def _temporary(target: Path) -> Path:
    return target.with_name(f".tmp-{secrets.token_hex(8)}")


@contextmanager
def _replacing(target: Path) -> Iterator[int]:
    """A descriptor to write to. The caller fsyncs it; leaving without an error renames the file to `target`."""
    temporary = _temporary(target)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _write(target: Path, data: bytes) -> None:
    with _replacing(target) as fd:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError(f"cannot write to the layout {path}: {error.strerror or error}") from error
