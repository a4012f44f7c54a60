"""From what containerd says of a layer to all that it takes to mount it: its blob's size and its TOC, from the registry or the store.

The labels name the layer and the TOC that containerd's own, verified manifest vouches for; but for our own client's, they do not say
how large the blob is. So the manifest is asked for once an image. What it says beyond that is a hint: a wrong size ends in a TOC that
does not match. It also names the image's other layers, which will be asked for next: they are resolved at the same time, and each one's EROFS
image is begun when its TOC and those below have come, and its landmark's prefix follows, into the store only. Nothing of that is a snapshot
before containerd asks for it.
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
from lazyfs.format.dialects import claim_of, claimed_text, dialect_of, held_to, key_of
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
"""Seconds that a call of containerd's may spend on the network: it holds a lock meanwhile."""
_MEMORY: Final = 60.0
"""Seconds for which an image is remembered, with the layers that nobody has asked for; after that its tag may mean another one."""
_PATIENCE: Final = 60.0
"""Seconds for a manifest, and for a TOC: what one Prepare may wait for is bounded there."""
_BRIEFLY: Final = 0.5
"""Seconds that a layer gets when another one of its image has been waited for in vain: it may be in the store."""
_AT_ONCE: Final = 8
"""TOCs of one image under way, as in image/image.py."""

_Expect = Callable[[Sequence[str]], None]
"""Takes the keys (format/dialects.py) of TOCs that will come."""


class Resolved(NamedTuple):
    """A layer that may be mounted lazily."""

    lazy: LazyLayer
    layer_index: LayerIndexer


class _Key(NamedTuple):
    """Which image is remembered."""

    repository: str
    selector: str
    is_labelled: bool
    """By our own client, in its labels."""


class _Image:
    """One image that containerd is pulling."""

    def __init__(self) -> None:
        self.layers: tuple[Descriptor, ...] = ()
        """From the lowest up."""
        self.failure: LazyfsError | None = None
        self.known = trio.Event()
        """Its layers are known, or the manifest cannot be had."""
        self.bounds = ImageBounds()
        """For what its layers describe, in memory until they are asked for: containerd asks for one after the other."""
        self.counted: set[Digest] = set()
        """Layers that are on that account: one may be asked for again, on another parent."""
        self.loads: dict[str, _Load] = {}
        self.places = trio.CapacityLimiter(_AT_ONCE)
        """For those that are under way: a manifest may name a thousand layers."""
        self.ahead: list[_Load] = []
        """From the lowest layer up, those whose EROFS images are not begun yet."""
        self.growing: GrowingStack | None = None
        """Where they are built."""
        self.missed: set[Digest] = set()
        """Layers that somebody went away without, because they took too long."""

    def fail(self, what: str, cause: Exception) -> None:
        """A task of it has failed unexpectedly: those who wait get the error."""
        self.failure = self.failure or _failed(cause, what)

    def begin(self) -> None:
        """The EROFS images whose turn has come."""
        while self.growing and self.ahead and (self.ahead[0].toc or self.ahead[0].failure):
            load = self.ahead.pop(0)
            if load.toc is None:
                self.ahead.clear()  # its children are built when they are asked for
            else:
                load.image = self.growing.add(load.toc)


class _Load:
    """One layer on its way, with one TOC digest."""

    def __init__(self) -> None:
        self.toc: LayerMetadata | None = None
        """It is in the store."""
        self.index: LayerIndexer | None = None
        self.failure: LazyfsError | None = None
        self.ended = trio.Event()
        self.image: Future[Path] | None = None
        """Its EROFS image, if that was begun ahead of time."""

    def fail(self, what: str, image: _Image | None, cause: Exception) -> None:
        """As for an image. Not what fails once the layer is there."""
        if not self.ended.is_set():
            self.failure = _failed(cause, what)
            if image is not None:
                image.begin()


class Resolving:
    """Resolves layers, each once. Not for threads."""

    def __init__(self, store: Store, layers: LazyLayers, tasks: Supervisor) -> None:
        self._store = store
        self._layers = layers
        self._tasks = tasks
        self._images: dict[_Key, _Image] = {}
        # Two at once would build the same images twice.
        self._building = trio.Lock()

    async def resolve(self, claim: Claim) -> Resolved:
        """The layer of `claim`. Raises LazyfsError: it cannot be lazy.

        Cancelled: what is under way arrives all the same, but nobody waits long for another layer of this image: a pull waits for
        a registry that does not answer once, not once a layer. Only who asks for the same layer again has time again.
        """
        reference = parse_reference(f"docker://{claim.reference}")
        if reference.transport != "docker":
            raise UsageError(f"{claim.reference} names no registry")
        repository = f"docker://{reference.location}"
        # What a client tells of an image is not taken for what its manifest says: it may have told less.
        key = _Key(repository, claim.manifest_digest or reference.selector, claim.size is not None)
        image = self._images.get(key)
        if image is None or image.failure is not None:
            image = self._images[key] = _Image()
            what = f"image {key.selector} of {repository}"
            self._tasks.start_soon(
                "image", self._follow, image, key, claim, subject=what, failed=partial(image.fail, what), wakes=[image.known]
            )
        if claim.digest in image.missed:
            image.missed.clear()
        await self._wait(image.known, image, claim)
        if image.failure is not None:
            raise image.failure
        named = _named_layer(image, claim)
        load = self._load(image, repository, named)
        await self._wait(load.ended, image, claim)
        image.loads.pop(_load_key(named), None)  # from here on it is in use, or nobody's
        if load.index is None:
            raise load.failure or Unreachable(f"layer {claim.digest} of {repository} is no longer waited for")
        if load.image is not None:
            # What goes wrong there, whoever builds it for good is told.
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
            with trio.move_on_after(_BRIEFLY if image.missed else math.inf) as patience:
                await event.wait()
        except trio.Cancelled:
            image.missed.add(claim.digest)
            raise
        if patience.cancelled_caught:
            image.missed.add(claim.digest)
            raise Unreachable(f"another layer of {claim.reference} has been waited for in vain already")

    async def build(self, stack: Sequence[LazyLayer | Path]) -> tuple[Path, ...]:
        """The EROFS images of a stack (native/metadata.py), built where they are not there, and directories, from the lowest up.

        That needs no registry, unless somebody has removed both an image and the TOC that it was built from. Raises LazyfsError.
        """
        layers = [
            layer if isinstance(layer, Path) else LayerMetadata(layer.toc_digest, layer.toc_offset, dialect=layer.dialect)
            for layer in stack
        ]
        try:
            return await self._build(layers)
        except LazyfsError:
            lazy = [layer for layer in stack if isinstance(layer, LazyLayer)]
            lost = await trio.to_thread.run_sync(self._lost, lazy)
            if not lost:
                raise
        await self._fetch_again(lost)
        return await self._build(layers)

    async def _build(self, stack: Sequence[LayerMetadata | Path]) -> tuple[Path, ...]:
        async with self._building:
            return await trio.to_thread.run_sync(ensure_metadata, self._store.directory.path, stack)

    def _lost(self, layers: Sequence[LazyLayer]) -> list[LazyLayer]:
        return [layer for layer in layers if self._store.document(layer.toc_digest) is None]

    async def _fetch_again(self, lost: Sequence[LazyLayer]) -> None:
        """The TOCs of these. Raises LazyfsError, also when that takes too long; what is under way arrives all the same."""
        loads = []
        for lazy in lost:
            _log.warning("the TOC of layer %s is missing from the store: fetching it again", lazy.digest)
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

    async def _follow(self, image: _Image, key: _Key, claim: Claim) -> None:
        """All that there is to do for an image, and the end of its memory."""
        try:
            async with self._building_ahead(image) as expect:
                if key.is_labelled:
                    image.layers = tuple(layer.descriptor for layer in claim.layers)
                else:
                    expect([key_of(claim.toc)])  # there is at least that; its process starts while the manifest is on its way
                    await self._find_manifest(image, key.repository, key.selector, 1 + len(claim.following))
                image.known.set()
                if image.failure is None:
                    await self._resolve_ahead(image, key.repository, expect)
            if image.failure is None:
                await trio.sleep(_MEMORY)
        finally:
            if self._images.get(key) is image:
                del self._images[key]

    @asynccontextmanager
    async def _building_ahead(self, image: _Image) -> AsyncIterator[_Expect]:
        """Where the image's EROFS images are built; whoever knows of a TOC that will come says so, and a process starts."""
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
        """`layers`: how many will be resolved then."""
        try:
            with self._layers.repository(repository).in_use() as live, trio.fail_after(_PATIENCE):
                self._tasks.start_soon("connecting ahead", _connect_ahead, live, layers, subject=repository)
                _, manifest = await resolve_manifest(live.source, selector, this_platform(), self._store)
                # A lazy snapshot does not remember URLs: a foreign layer that the registry does not serve is left to containerd.
                image.layers = tuple(msgspec.structs.replace(layer, urls=()) for layer in manifest.layers)
        except trio.TooSlowError:
            image.failure = Unreachable(f"{repository} did not deliver the manifest of {selector} within {_PATIENCE:.0f} s")
        except LazyfsError as error:
            image.failure = error

    async def _resolve_ahead(self, image: _Image, repository: str, expect: _Expect) -> None:
        """Every layer of an image that looks lazy, and the EROFS images of those that stand on lazy ones only."""
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
                image.begin()  # which reads it, too, on another processor

        try:
            async with image.places if image is not None else nullcontext():
                with self._layers.repository(repository).in_use() as live, trio.fail_after(_PATIENCE):
                    layer = await load_layer(
                        live.source, self._store, descriptor, accepted=accepted, image=bounds, in_store=in_store
                    )
                    load.index = LayerIndexer(layer)
            if image is not None:
                image.counted.add(descriptor.digest)
        except trio.TooSlowError:
            load.failure = Unreachable(
                f"{repository} did not deliver the TOC of layer {descriptor.digest} within {_PATIENCE:.0f} s"
            )
        except LazyfsError as error:
            load.failure = without_traceback(error)
        load.ended.set()
        if image is not None:
            image.begin()
        if image is not None and load.index is not None and not self._layers.is_known(load.index.layer):
            await load.index.indexed()  # while others build
            await self._layers.fetch_prefix(load.index, repository)


def _failed(cause: Exception, what: str) -> LazyfsError:
    """For those who wait: a descriptor or a thread that cannot be had, or a defect of ours, which the log has in full."""
    return LocalError(f"{what} cannot be resolved: {cause!r}", hint="The next request tries again.")


def _named_layer(image: _Image, claim: Claim) -> Descriptor:
    """The layer with the TOC that is believed: the one that containerd's manifest vouches for. Raises BadAnswer."""
    if claim.size is not None:
        return ListedLayer(claim.digest, claim.size, claim.toc).descriptor
    named = next((layer for layer in image.layers if layer.digest == claim.digest), None)
    if named is None:
        raise BadAnswer(f"the manifest of {claim.reference} does not name layer {claim.digest}: the tag may have moved")
    return msgspec.structs.replace(named, annotations=held_to(named.annotations, claim.toc))


def _looks_lazy(layer: Descriptor) -> bool:
    return dialect_of(layer.annotations) is not None


async def _connect_ahead(repository: LiveSource, count: int) -> None:
    with repository.in_use(), trio.move_on_after(DEADLINE):
        await repository.source.connect_ahead(count)


async def _expect(growing: GrowingStack, keys: Sequence[str]) -> None:
    with suppress(OSError):  # whoever builds is told why no process can be started
        await trio.to_thread.run_sync(growing.expect, keys)


def _toc_keys(layers: Sequence[Descriptor]) -> list[str]:
    found = []
    for layer in layers:
        with suppress(LazyfsError):  # whoever loads it tells what is wrong with it
            found.append(key_of(claim_of(layer.annotations, f"layer {layer.digest}")))
    return found


def _wait_for(image: Future[Path]) -> None:
    """Blocking. Until it is there, or will not be."""
    with suppress(CancelledError):
        image.exception()


def _load_key(descriptor: Descriptor) -> str:
    dialect = dialect_of(descriptor.annotations)
    return f"{descriptor.digest} {dialect.name if dialect else ''} {claimed_text(descriptor.annotations)}"
