"""Resolves the layers that containerd asks for: from labels to a blob's size and its TOC, from the registry or the store.

The labels name the layer and the TOC, both from containerd's own, verified manifest. Only our own client also labels the blob's size, so
for the others the manifest is fetched, once an image. What it says beyond that is a hint: a wrong size ends in a TOC that does not match.
It also names the image's other layers, which containerd will ask for next. They are resolved at the same time: each layer's EROFS image is
built as soon as its TOC and those below have arrived, then its prefix up to the landmark is fetched. All of that only fills the store: a
snapshot exists when containerd asks for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import trio

from lazyfs.containerd.lazy_layers import LazyLayers, layer_of
from lazyfs.errors import BadAnswer, LazyfsError, LocalError, Unreachable, UsageError, without_traceback
from lazyfs.format.bounds import ImageBounds
from lazyfs.format.dialects import claim_of, claimed_digest, dialect_of, key_of, with_claim
from lazyfs.format.digest import Digest
from lazyfs.format.manifest import Descriptor
from lazyfs.format.platform import this_platform
from lazyfs.image.image import resolve_manifest
from lazyfs.image.layer import Toc, load_layer
from lazyfs.live.layer import LayerIndexer
from lazyfs.live.source import LiveSource
from lazyfs.native.metadata import GrowingStack, LayerMetadata, ensure_metadata
from lazyfs.snapshots.labels import Claim, ListedLayer
from lazyfs.snapshots.snapshot import LazyLayer
from lazyfs.source.reference import parse_reference
from lazyfs.store.store import Store
from lazyfs.tasks import Supervisor

_log = logging.getLogger(__name__)

DEADLINE: Final = 10.0
"""Seconds that a call of containerd may spend on the network: containerd holds a lock meanwhile."""
_IMAGE_LIFETIME: Final = 60.0
"""Seconds to remember an image and its resolved layers; after that its tag may name another one."""
_FETCH_TIMEOUT: Final = 60.0
"""Seconds to fetch a manifest or a TOC."""
_SHORT_TIMEOUT: Final = 0.5
"""Seconds to wait for a layer after another one of its image timed out: it may be in the store."""
_AT_ONCE: Final = 8
"""TOCs of one image fetched at the same time, as in image/image.py."""

_Expect = Callable[[Sequence[str]], None]
"""Takes the keys (format/dialects.py) of TOCs that will be built."""


class Resolved(NamedTuple):
    """A layer that can be mounted lazily."""

    lazy: LazyLayer
    layer_index: LayerIndexer


class _Key(NamedTuple):
    """Identifies a remembered image."""

    repository: str
    selector: str
    is_labelled: bool
    """By our own client, in its labels."""


class _Image:
    """An image that containerd is pulling."""

    def __init__(self) -> None:
        self.layers: tuple[Descriptor, ...] = ()
        """The lowest first."""
        self.failure: LazyfsError | None = None
        self.known = trio.Event()
        """Set when `layers` or `failure` is set."""
        self.bounds = ImageBounds()
        """On what its layers describe: they stay in memory until containerd asks for them, one after the other."""
        self.counted: set[Digest] = set()
        """Layers already counted in `bounds`: containerd may ask for one again, on another parent."""
        self.loads: dict[str, _Load] = {}
        self.places = trio.CapacityLimiter(_AT_ONCE)
        """For the loads in progress: a manifest may name a thousand layers."""
        self.ahead: list[_Load] = []
        """Loads whose EROFS images are not yet building, the lowest layer first."""
        self.growing: GrowingStack | None = None
        """Builds those images."""
        self.timed_out: set[Digest] = set()
        """Layers that a caller stopped waiting for."""

    def fail(self, what: str, cause: Exception) -> None:
        """A task of this image failed unexpectedly: callers that wait get the error."""
        self.failure = self.failure or _failed(cause, what)

    def begin(self) -> None:
        """Start to build the EROFS images whose TOCs, and those of the layers below, have arrived."""
        while self.growing and self.ahead and (self.ahead[0].toc or self.ahead[0].failure):
            load = self.ahead.pop(0)
            if load.toc is None:
                self.ahead.clear()  # the layers above are built when containerd asks for them
            else:
                load.image = self.growing.add(load.toc)


class _Load:
    """A layer that is being resolved, with one TOC digest."""

    def __init__(self) -> None:
        self.toc: LayerMetadata | None = None
        """Set when the TOC is in the store."""
        self.index: LayerIndexer | None = None
        self.failure: LazyfsError | None = None
        self.ended = trio.Event()
        self.image: Future[Path] | None = None
        """Its EROFS image, if it is built ahead of time."""

    def fail(self, what: str, image: _Image | None, cause: Exception) -> None:
        """As `_Image.fail`. Ignored once the layer is resolved."""
        if not self.ended.is_set():
            self.failure = _failed(cause, what)
            if image is not None:
                image.begin()


class LayerResolver:
    """Resolves each layer once. Not thread-safe."""

    def __init__(self, store: Store, layers: LazyLayers, tasks: Supervisor) -> None:
        self._store = store
        self._layers = layers
        self._tasks = tasks
        self._images: dict[_Key, _Image] = {}
        # Two builds at once would build the same images twice.
        self._building = trio.Lock()

    async def resolve(self, claim: Claim) -> Resolved:
        """The layer of `claim`. Raises LazyfsError when it cannot be lazy.

        Cancelled: the fetch goes on, but later calls wait only briefly for other layers of this image, so that a pull waits once, not
        once a layer, for a registry that does not answer. A call for the same layer gets the full time again.
        """
        reference = parse_reference(f"docker://{claim.reference}")
        if reference.transport != "docker":
            raise UsageError(f"{claim.reference} names no registry")
        repository = f"docker://{reference.location}"
        # Kept apart from the manifest: a client may have listed only some of the layers.
        key = _Key(repository, claim.manifest_digest or reference.selector, claim.size is not None)
        image = self._images.get(key)
        if image is None or image.failure is not None:
            image = self._images[key] = _Image()
            what = f"image {key.selector} of {repository}"
            self._tasks.start_soon(
                "image", self._resolve_all, image, key, claim, subject=what, failed=partial(image.fail, what), wakes=[image.known]
            )
        if claim.digest in image.timed_out:
            image.timed_out.clear()
        await self._wait(image.known, image, claim)
        if image.failure is not None:
            raise image.failure
        named = _named_layer(image, claim)
        load = self._load(image, repository, named)
        await self._wait(load.ended, image, claim)
        image.loads.pop(_load_key(named), None)  # from here on it is in use, or not needed
        if load.index is None:
            raise load.failure or Unreachable(f"layer {claim.digest} of {repository} is no longer waited for")
        if load.image is not None:
            # `build` reports what goes wrong with it.
            await trio.to_thread.run_sync(_wait_for, load.image, abandon_on_cancel=True)
        layer = load.index.layer
        lazy = LazyLayer(
            repository,
            layer.digest,
            layer.descriptor.size,
            layer.descriptor.media_type,
            layer.toc_digest,
            layer.toc_offset,
            layer.dialect.name,
        )
        return Resolved(lazy, load.index)

    async def _wait(self, event: trio.Event, image: _Image, claim: Claim) -> None:
        try:
            with trio.move_on_after(_SHORT_TIMEOUT if image.timed_out else math.inf) as patience:
                await event.wait()
        except trio.Cancelled:
            image.timed_out.add(claim.digest)
            raise
        if patience.cancelled_caught:
            image.timed_out.add(claim.digest)
            raise Unreachable(f"another layer of {claim.reference} timed out before")

    async def build(self, stack: Sequence[LazyLayer | Path]) -> tuple[Path, ...]:
        """The EROFS images of a stack (native/metadata.py), and directories, the lowest first. Missing images are built.

        Needs the registry only if both an image and the TOC that it was built from were removed. Raises LazyfsError.
        """
        layers = [
            layer if isinstance(layer, Path) else LayerMetadata(layer.toc_digest, layer.toc_offset, dialect=layer.dialect)
            for layer in stack
        ]
        try:
            return await self._build(layers)
        except LazyfsError:
            lazy = [layer for layer in stack if isinstance(layer, LazyLayer)]
            lost = await trio.to_thread.run_sync(self._missing_tocs, lazy)
            if not lost:
                raise
        await self._fetch_again(lost)
        return await self._build(layers)

    async def _build(self, stack: Sequence[LayerMetadata | Path]) -> tuple[Path, ...]:
        async with self._building:
            return await trio.to_thread.run_sync(ensure_metadata, self._store.directory.path, stack)

    def _missing_tocs(self, layers: Sequence[LazyLayer]) -> list[LazyLayer]:
        return [layer for layer in layers if self._store.document(layer.toc_digest) is None]

    async def _fetch_again(self, lost: Sequence[LazyLayer]) -> None:
        """Fetch the TOCs of these layers. Raises LazyfsError, also after DEADLINE; the fetches then go on."""
        loads = []
        for lazy in lost:
            _log.warning("the TOC of layer %s of %s is missing from the store: fetching it again", lazy.digest, lazy.reference)
            loads.append(_Load())
            self._start(loads[-1], lazy.reference, layer_of(lazy).descriptor, accepted=True)
        with trio.move_on_after(DEADLINE) as patience:
            for load in loads:
                await load.ended.wait()
        if patience.cancelled_caught:
            raise Unreachable(f"{lost[0].reference} did not deliver the missing TOCs within {DEADLINE:.0f} s")
        for load in loads:
            if load.failure is not None:
                raise load.failure

    def _start(
        self, load: _Load, repository: str, descriptor: Descriptor, image: _Image | None = None, *, accepted: bool = False
    ) -> None:
        what = f"layer {descriptor.digest} of {repository}"
        fetch = partial(self._fetch, load, repository, descriptor, image, accepted=accepted)
        self._tasks.start_soon("TOC", fetch, subject=what, failed=partial(load.fail, what, image), wakes=[load.ended])

    async def _resolve_all(self, image: _Image, key: _Key, claim: Claim) -> None:
        """Resolve all layers of an image, and forget it after a while."""
        try:
            async with self._building_ahead(image) as expect:
                if key.is_labelled:
                    image.layers = tuple(layer.descriptor for layer in claim.layers)
                else:
                    expect([key_of(claim.toc)])  # at least this one: its builder starts while the manifest is fetched
                    await self._find_manifest(image, key.repository, key.selector, 1 + len(claim.following))
                image.known.set()
                if image.failure is None:
                    await self._resolve_ahead(image, key.repository, expect)
            if image.failure is None:
                await trio.sleep(_IMAGE_LIFETIME)
        finally:
            if self._images.get(key) is image:
                del self._images[key]

    @asynccontextmanager
    async def _building_ahead(self, image: _Image) -> AsyncIterator[_Expect]:
        """Build the image's EROFS images in this block. Yields a function that starts builders for TOCs that are expected."""
        try:
            image.growing = growing = GrowingStack(self._store.directory.path)
        except LazyfsError as error:
            _log.info("cannot start the builders ahead of time: %s", error)
            yield lambda _: None
            return
        try:
            async with trio.open_nursery() as nursery:
                tasks = self._tasks.within(nursery)
                yield lambda keys: tasks.start_soon("start of builders", _expect, growing, keys)
        finally:
            image.growing = None
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(growing.close)

    async def _find_manifest(self, image: _Image, repository: str, selector: str, layers: int) -> None:
        """Fetch the manifest. `layers`: how many layers will be resolved after it, for connections opened ahead of time."""
        try:
            with self._layers.repository(repository).in_use() as live, trio.fail_after(_FETCH_TIMEOUT):
                self._tasks.start_soon("connecting ahead", _connect_ahead, live, layers, subject=repository)
                _, manifest = await resolve_manifest(live.source, selector, this_platform(), self._store)
                # A lazy snapshot does not remember URLs: a foreign layer that the registry does not serve is left to containerd.
                image.layers = tuple(msgspec.structs.replace(layer, urls=()) for layer in manifest.layers)
        except trio.TooSlowError:
            image.failure = Unreachable(f"{repository} did not deliver the manifest of {selector} within {_FETCH_TIMEOUT:.0f} s")
        except LazyfsError as error:
            image.failure = error

    async def _resolve_ahead(self, image: _Image, repository: str, expect: _Expect) -> None:
        """Load every layer of an image that looks lazy, and build the EROFS images of those with only lazy layers below."""
        stack = list(takewhile(_looks_lazy, image.layers))
        expect(_toc_keys(stack))
        loads = [self._load(image, repository, layer) for layer in image.layers if _looks_lazy(layer)]
        image.ahead = loads[: len(stack)]
        image.begin()
        for load in loads:
            await load.ended.wait()
            if load.image is not None:
                await trio.to_thread.run_sync(_wait_for, load.image)

    def _load(self, image: _Image, repository: str, descriptor: Descriptor) -> _Load:
        key = _load_key(descriptor)
        load = image.loads.get(key)
        if load is None or load.failure is not None:
            load = image.loads[key] = _Load()
            self._start(load, repository, descriptor, image)
        return load

    async def _fetch(
        self, load: _Load, repository: str, descriptor: Descriptor, image: _Image | None = None, *, accepted: bool = False
    ) -> None:
        bounds = image.bounds if image is not None and descriptor.digest not in image.counted else None

        def in_store(toc: Toc) -> None:
            if image is not None:
                load.toc = LayerMetadata(toc.claim.digest, toc.offset, toc.arrived, toc.claim.dialect.name)
                image.begin()  # it reads the TOC as well, in another process

        try:
            async with image.places if image is not None else nullcontext():
                with self._layers.repository(repository).in_use() as live, trio.fail_after(_FETCH_TIMEOUT):
                    layer = await load_layer(
                        live.source, self._store, descriptor, accepted=accepted, image=bounds, in_store=in_store
                    )
                    load.index = LayerIndexer(layer)
            if image is not None:
                image.counted.add(descriptor.digest)
        except trio.TooSlowError:
            load.failure = Unreachable(
                f"{repository} did not deliver the TOC of layer {descriptor.digest} within {_FETCH_TIMEOUT:.0f} s"
            )
        except LazyfsError as error:
            load.failure = without_traceback(error)
        load.ended.set()
        if image is not None:
            image.begin()
        if image is not None and load.index is not None and not self._layers.is_known(load.index.layer):
            await load.index.indexed()  # while builders run
            await self._layers.fetch_prefix(load.index, repository)


def _failed(cause: Exception, what: str) -> LazyfsError:
    """The error for callers that wait: out of descriptors or threads, or a defect, which the log has in full."""
    return LocalError(f"{what} cannot be resolved: {cause!r}", hint="The next request tries again.")


def _named_layer(image: _Image, claim: Claim) -> Descriptor:
    """The layer with the TOC digest from containerd's verified manifest. Raises BadAnswer."""
    if claim.size is not None:
        return ListedLayer(claim.digest, claim.size, claim.toc).descriptor
    named = next((layer for layer in image.layers if layer.digest == claim.digest), None)
    if named is None:
        raise BadAnswer(f"the manifest of {claim.reference} does not name layer {claim.digest}: the tag may have moved")
    return msgspec.structs.replace(named, annotations=with_claim(named.annotations, claim.toc))


def _looks_lazy(layer: Descriptor) -> bool:
    return dialect_of(layer.annotations) is not None


async def _connect_ahead(repository: LiveSource, count: int) -> None:
    with repository.in_use(), trio.move_on_after(DEADLINE):
        await repository.source.connect_ahead(count)


async def _expect(growing: GrowingStack, keys: Sequence[str]) -> None:
    with suppress(OSError):  # `build` reports why no process can be started
        await trio.to_thread.run_sync(growing.expect, keys)


def _toc_keys(layers: Sequence[Descriptor]) -> list[str]:
    found = []
    for layer in layers:
        with suppress(LazyfsError):  # loading the layer reports what is wrong with it
            found.append(key_of(claim_of(layer.annotations, f"layer {layer.digest}")))
    return found


def _wait_for(image: Future[Path]) -> None:
    """Wait until it is built or has failed. Blocking."""
    with suppress(CancelledError):
        image.exception()


def _load_key(descriptor: Descriptor) -> str:
    dialect = dialect_of(descriptor.annotations)
    return f"{descriptor.digest} {dialect.name if dialect else ''} {claimed_digest(descriptor.annotations)}"
