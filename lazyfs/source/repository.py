"""A registry's repository as a source and a sink of images (distribution-spec 1.1)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from lazyfs.errors import BadAnswer, DigestMismatch, InvalidManifest, Unauthorized, show
from lazyfs.format.digest import Digest, check, digest_of, is_digest
from lazyfs.format.manifest import DOCUMENT_TYPES, MAX_DOCUMENT
from lazyfs.registry.access import AccessOptions
from lazyfs.registry.client import RegistryClient, error_for_status
from lazyfs.registry.http import Response
from lazyfs.registry.ranges import Ranges
from lazyfs.registry.uploads import Upload
from lazyfs.registry.url import Url
from lazyfs.source.foreign import BlobRange, ForeignBlobs
from lazyfs.source.protocol import Document, ImageSource, RangeStream

_log = logging.getLogger(__name__)

_ACCEPT: Final = ", ".join(DOCUMENT_TYPES)


class Repository:
    """ImageSource and ImageSink. Connects at the first request."""

    def __init__(self, host: str, repository: str, options: AccessOptions) -> None:
        self.client = RegistryClient(host, options)
        self.repository = repository
        self._ranges = Ranges(self.client)
        self._foreign = ForeignBlobs()
        # A source asks only for pull: anonymous users and read-only tokens get nothing else.
        self.pull = (f"repository:{repository}:pull",)
        self.push = (f"repository:{repository}:pull,push",)

    @property
    def name(self) -> str:
        """`docker://HOST/REPO`."""
        return f"docker://{self.client.host}/{self.repository}"

    @property
    def authority(self) -> str:
        """`docker://HOST`."""
        return f"docker://{self.client.host}"

    async def document(self, reference: str) -> Document:
        """See ImageSource."""
        what = f"{self.name}{'@' if ':' in reference else ':'}{reference}"
        url = self.client.url(f"{self.repository}/manifests/{reference}")
        digest = Digest(reference) if ":" in reference else None
        answer = await self._get(what, url, digest, MAX_DOCUMENT, headers={"Accept": _ACCEPT})
        return Document(answer.headers.get("content-type", ""), digest_of(answer.body), answer.body)

    async def small_blob(self, digest: Digest, limit: int) -> bytes:
        """See ImageSource."""
        what = f"blob {digest} of {self.name}"
        url = self.client.url(f"{self.repository}/blobs/{digest}")
        return (await self._get(what, url, digest, limit)).body

    async def _get(
        self, what: str, url: Url, digest: Digest | None, limit: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The content of `url`, verified if its digest is known. Wrong content is requested once more.

        So is a document by tag whose digest differs from the registry's header. If the registry repeats the contradiction, the
        document is accepted, as skopeo does.
        """
        is_last_try = False
        while True:
            answer = await self.client.ask(what, "GET", url, self.pull, headers=headers, limit=limit)
            if answer.status != 200:
                raise error_for_status(what, answer.url, answer.status, answer.body)
            claimed = answer.headers.get("docker-content-digest", "")
            expected = Digest(claimed) if digest is None and not is_last_try and is_digest(claimed) else digest
            try:
                if expected is not None:
                    check(answer.body, expected, what)
            except DigestMismatch as error:
                if is_last_try:
                    raise
                _log.info("%s: asking for it once more", error)
                is_last_try = True
            else:
                return answer

    async def connect_ahead(self, count: int) -> None:
        """See ImageSource."""
        await self._ranges.connect_ahead(count)

    def open_range(
        self, digest: Digest, size: int, start: int, end: int, *, urls: Sequence[str] = (), deadline: float = math.inf
    ) -> AbstractAsyncContextManager[RangeStream]:
        """See ImageSource."""
        path = f"{self.repository}/blobs/{digest}"
        opened = self._ranges.open(f"blob {digest} of {self.name}", path, self.pull, digest, size, start, end, deadline)
        return self._foreign.open(BlobRange(digest, size, start, end, urls, deadline), opened) if urls else opened

    def distrust(self, digest: Digest) -> None:
        """See ImageSource."""
        self._ranges.distrust(digest)
        self._foreign.distrust(digest)

    async def has_blob(self, digest: Digest, size: int) -> bool:
        """See ImageSink. A blob of another size raises BadAnswer."""
        what = f"blob {digest} of {self.name}"
        url = self.client.url(f"{self.repository}/blobs/{digest}")
        answer = await self.client.ask(what, "HEAD", url, self.push)
        if answer.status == 404:
            return False
        if answer.status != 200:
            raise error_for_status(what, answer.url, answer.status)
        length = answer.headers.get("content-length", str(size))
        if length != str(size):
            raise BadAnswer(
                f"{what} has {length} bytes instead of {size}", hint="The registry's copy is damaged: have it deleted"
            )
        return True

    async def mount_blob(self, digest: Digest, size: int, origin: ImageSource) -> bool:
        """See ImageSink. From another repository of the same registry."""
        if not isinstance(origin, Repository) or origin.client.root != self.client.root:
            return False
        scope = (*self.push, *origin.pull)
        path = f"{self.repository}/blobs/uploads/?mount={digest}&from={origin.repository}"
        what = f"blob {digest} to {self.name}"
        try:
            answer = await self.client.ask(what, "POST", self.client.url(path), scope, headers={"Content-Length": "0"})
        except Unauthorized:
            return False  # no token for both repositories
        # 202 opens an upload instead, which the registry drops after a while. An error (no permission to read there) occurs
        # again when the blob itself is sent, if it matters.
        return answer.status == 201

    async def put_blob(self, digest: Digest, path: Path, progress: Callable[[int], None]) -> None:
        """See ImageSink. The bytes of a failed try are reported as a negative count."""
        await Upload(self.client, self.repository, self.push, digest, path).run(progress)

    async def put_document(self, reference: str, document: Document) -> None:
        """See ImageSink."""
        if len(document.data) > MAX_DOCUMENT:
            raise InvalidManifest(f"a manifest of {len(document.data)} bytes is over the limit of {MAX_DOCUMENT}")
        what = f"{self.name}{'@' if ':' in reference else ':'}{reference}"
        url = self.client.url(f"{self.repository}/manifests/{reference}")
        answer = await self.client.ask(
            what, "PUT", url, self.push, headers={"Content-Type": document.media_type}, content=document.data
        )
        if answer.status not in {200, 201, 204}:
            raise error_for_status(what, answer.url, answer.status, answer.body)
        got = answer.headers.get("docker-content-digest") or document.digest
        if got != document.digest:
            raise BadAnswer(f"{what}: the registry says it has kept {show(got)} instead of {document.digest}")

    async def aclose(self) -> None:
        """See ImageSource."""
        await self.client.aclose()
        await self._foreign.aclose()
