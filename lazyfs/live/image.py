"""Live images: mounted stacks of live layers with a source of their own, and their background fetch.

An image lives from its first mount until some time after its last one, because the next container is most likely one of the
same image. Two mounts of the same manifest from the same repository share one image.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import NamedTuple

import trio

from lazyfs.eager.image import load_image_layers
from lazyfs.eager.progress import Notify
from lazyfs.fetch.background import Background, tally_of
from lazyfs.fetch.fetcher import Fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.platform import parse_platform
from lazyfs.gate.catalog import Catalog
from lazyfs.image.image import Image, resolve_image
from lazyfs.image.layer import Layer
from lazyfs.live.layer import LayerIndexer, LiveLayer
from lazyfs.live.layers import Layers
from lazyfs.live.source import LiveSource, Sources
from lazyfs.live.uses import Uses
from lazyfs.registry.access import AccessOptions, parse_creds
from lazyfs.source.open import open_source
from lazyfs.source.protocol import ImageSource
from lazyfs.source.reference import parse_reference
from lazyfs.store.store import Store
from lazyfs.store.tally import Tally
from lazyfs.tasks import Supervisor


class ImageRequest(NamedTuple):
    """Which image to make live."""

    reference: str
    platform: str
    """`os/architecture[/variant]`."""
    plain_http: bool
    background: bool
    """Fetch the rest of it in the background."""
    accepted: bool
    """It is mounted already, perhaps by an earlier version, so newer bounds do not apply to it."""


class LiveImage:
    """One image while it is mounted. Made by `Images`."""

    def __init__(self, image: Image, layers: tuple[LiveLayer, ...], source: LiveSource) -> None:
        self.image = image
        self.live_layers = layers
        self.source = source
        self.background: Background | None = None
        self.wants_background = trio.Event()
        self.fetching: trio.CancelScope | None = None
        """Scope of the background fetch."""
        self.rest_ended = trio.Event()
        """Set when the background fetch has fetched all that it can."""
        self.uses = Uses()
        """Its mounts."""
        self._tally: Tally | None = None
        self._tallying = trio.Lock()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers without entries, lowest first."""
        return tuple(live.layer for live in self.live_layers)

    @property
    def is_known(self) -> bool:
        """Whether the gate knows its objects."""
        return all(live.is_known for live in self.live_layers)

    async def known(self) -> None:
        """Wait until the gate knows its objects. Raises StoreUnusable if the image ends before that."""
        for live in self.live_layers:
            await live.known()

    @property
    def fetcher(self) -> Fetcher | None:
        """The fetcher for what is missing; None until the source first works."""
        return self.source.fetcher

    @property
    def mounts(self) -> int:
        """Number of mounts."""
        return self.uses.count

    @property
    def failure(self) -> str:
        """Why the gate does not know its objects, if indexing has failed."""
        return next((live.trouble for live in self.live_layers if live.trouble), "")

    @property
    def trouble(self) -> str:
        """Why the background fetch is stalled, or gave something up; empty while all is well."""
        return self.failure or (self.background.trouble if self.background else "")

    @property
    def blobs(self) -> list[LayerBlob]:
        """The pieces of its layers, as far as they are known."""
        return [live.kept.objects.layer for live in self.live_layers if live.kept is not None]

    async def tally(self, store: Store) -> Tally:
        """A tally of what is missing, once the image is known. Made at the first call."""
        async with self._tallying:
            if self._tally is None:
                self._tally = await trio.to_thread.run_sync(tally_of, store, self.blobs)
            return self._tally

    def use(self, *, background: bool) -> None:
        """Add a mount."""
        self.uses.change(+1)
        if background:
            self.wants_background.set()

    def leave(self) -> None:
        """Remove a mount."""
        self.uses.change(-1)

    def give_up(self) -> None:
        """The order for a mount was cancelled: stop fetching what only that mount needs."""
        if not self.mounts:
            self.wants_background = trio.Event()
            if self.fetching is not None:
                self.fetching.cancel()


class Images:
    """All live images by name. For the event loop."""

    def __init__(self, store: Store, catalog: Catalog, sources: Sources, layers: Layers, tasks: Supervisor) -> None:
        self._store = store
        self._catalog = catalog
        self._sources = sources
        self._layers = layers
        self._tasks = tasks
        self.live: dict[str, LiveImage] = {}

    async def acquire(self, request: ImageRequest, creds: str, notify: Notify, *, lazy_only: bool) -> LiveImage:
        """The image, with one use added for the caller's mount. `creds` is `USER:PASSWORD` or empty. Raises LazyfsError.

        Cancelled: what has arrived of an eager layer is kept for the next try.
        """
        reference = parse_reference(request.reference)
        source = open_source(reference, AccessOptions(parse_creds(creds) if creds else None, request.plain_http))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_close, source)
            image = await resolve_image(source, reference.selector, parse_platform(request.platform), self._store)
            known = self.live.get(image.name)
            if known is None:
                layers = await load_image_layers(
                    source, self._store, image, lazy_only=lazy_only, progress=notify, accepted=request.accepted
                )
                known = self.live.get(image.name)  # another order may have been faster
                if known is None:
                    stack.pop_all()
                    return self.add(image, layers, source, background=request.background)
            known.use(background=request.background)
            return known

    def add(self, image: Image, layers: tuple[Layer, ...], source: ImageSource, *, background: bool) -> LiveImage:
        """Add a live image with one mount. It owns `source` from now on."""
        own = self._sources.own(image.name, source)
        stack = tuple(self._layers.use(own, layer, LayerIndexer(layer)) for layer in layers)
        live = self.live[image.name] = LiveImage(image, stack, own)
        live.use(background=background)
        self._catalog.remove(image.name)  # it was expected by this name; now its layers are
        self._tasks.start_soon("image", self._run, live, subject=image.name)
        return live

    def containing(self, layers: set[str]) -> set[str]:
        """The names of the images that have any of these live layers."""
        return {name for name, live in self.live.items() if any(layer.name in layers for layer in live.live_layers)}

    async def _run(self, live: LiveImage) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._tasks.within(nursery).keep_running("image", self._run_until_unused, live, subject=live.image.name)
        finally:
            self._forget(live)
            for layer in live.live_layers:
                layer.uses.change(-1)
            live.source.uses.change(-1)

    async def _run_until_unused(self, live: LiveImage) -> None:
        """Run until nothing has mounted it for a while."""
        async with trio.open_nursery() as nursery:
            background = self._tasks.within(nursery)
            background.keep_running("background fetch", self._fetch_rest, live, subject=live.image.name)
            await live.uses.wait_until_unused()
            self._forget(live)  # before the tasks end: the next mount makes a new image
            nursery.cancel_scope.cancel()

    def _forget(self, live: LiveImage) -> None:
        """Does nothing if it is forgotten already: its name may belong to another image by now."""
        if self.live.get(live.image.name) is live:
            del self.live[live.image.name]

    async def _fetch_rest(self, live: LiveImage) -> None:
        """Fetch all of it once a mount wants that. If that was given up, the next mount starts it again."""
        await live.known()
        while not live.rest_ended.is_set():
            await live.wants_background.wait()
            with trio.CancelScope() as live.fetching:
                wanted = [layer.kept.wanted for layer in live.live_layers if layer.kept is not None]
                live.background = Background(
                    self._store,
                    await live.source.ready(),
                    wanted,
                    subject=live.image.name,
                    failures=self._tasks.failures,
                )
                await live.background.run()
                live.rest_ended.set()


async def _close(source: ImageSource) -> None:
    with trio.CancelScope(shield=True):
        await source.aclose()
