"""The images that are mounted, each with its source, its fetcher, its place in the gate's catalog, and the rest of its pull.

An image lives in a task of the daemon's nursery from its first mount on, and a while longer than its last one, because the next
container of the same image is the most probable one. Two mounts of the same manifest from the same source are one image.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import trio

from lazyfs.daemon.control import Tell
from lazyfs.daemon.state import Mount
from lazyfs.eager.image import load_image_layers
from lazyfs.errors import foremost
from lazyfs.fetch.background import Background, Wanted, tally_of
from lazyfs.fetch.fetcher import Fetcher, open_fetcher
from lazyfs.fetch.piece import LayerBlob
from lazyfs.format.platform import parse_platform
from lazyfs.gate.catalog import Catalog, LayerObjects, key_of
from lazyfs.image.image import Image, resolve_image
from lazyfs.image.layer import Layer
from lazyfs.live.uses import Uses
from lazyfs.registry.access import AccessOptions, parse_creds
from lazyfs.reports.orders import MountOrder
from lazyfs.source.open import open_source
from lazyfs.source.protocol import ImageSource
from lazyfs.source.reference import parse_reference
from lazyfs.store.store import Store
from lazyfs.store.tally import Tally
from lazyfs.tasks import Tasks, keep_running

_log = logging.getLogger(__name__)


class LiveImage:
    """One image, while it is mounted."""

    def __init__(self, image: Image, layers: tuple[Layer, ...], source: ImageSource) -> None:
        self.image = image
        self.layers = layers
        """Without entries, once the gate knows its objects."""
        self.prefetch_ends = [layer.prefetch_end for layer in layers]
        self.source = source
        self.objects: tuple[LayerObjects, ...] = ()
        """Of each layer, once it is indexed."""
        self.fetcher: Fetcher | None = None
        self.background: Background | None = None
        self.wants_background = trio.Event()
        self.fetching: trio.CancelScope | None = None
        """Around the background fetch."""
        self.indexed = trio.Event()
        """Set when the gate knows its objects."""
        self.rest_ended = trio.Event()
        """Set when the background fetch has brought all that it can."""
        self.failure = ""
        """Why the gate does not know its objects, where a try to make them known has failed."""
        self.uses = Uses()
        """By mounts."""
        self._tally: Tally | None = None
        self._tallying = trio.Lock()

    @property
    def mounts(self) -> int:
        """How many live."""
        return self.uses.count

    @property
    def trouble(self) -> str:
        """Why the background fetch stands still, or gave something up; empty while all is well."""
        return self.failure or (self.background.trouble if self.background else "")

    @property
    def blobs(self) -> list[LayerBlob]:
        """The layers' pieces, once it is indexed."""
        return [objects.layer for objects in self.objects]

    async def tally(self, store: Store) -> Tally:
        """Of what is missing of it, once it is indexed; made when it is asked for first."""
        async with self._tallying:
            if self._tally is None:
                self._tally = await trio.to_thread.run_sync(tally_of, store, self.blobs)
            return self._tally

    def use(self, *, background: bool) -> None:
        """One mount more."""
        self.uses.change(+1)
        if background:
            self.wants_background.set()

    def leave(self) -> None:
        """One mount less."""
        self.uses.change(-1)

    def give_up(self) -> None:
        """Whoever ordered a mount has taken the order back: what was fetched for it alone is fetched no more."""
        if not self.mounts:
            self.wants_background = trio.Event()
            if self.fetching is not None:
                self.fetching.cancel()


class Images:
    """All live images, by name. Not for threads."""

    def __init__(self, store: Store, catalog: Catalog, nursery: Tasks) -> None:
        self._store = store
        self._catalog = catalog
        self._nursery = nursery
        self.live: dict[str, LiveImage] = {}

    async def bring_to_life(self, mount: MountOrder | Mount, creds: str, tell: Tell, *, lazy_only: bool) -> LiveImage:
        """The image of a mount, counted as used by it. Raises LazyfsError.

        One that is mounted already, which its row in the state says, was accepted: no bound of this version's refuses it.

        Cancelled: what has arrived of a layer that is not lazy is thrown away.
        """
        reference = parse_reference(mount.reference)
        background = mount.background != "off"
        source = open_source(reference, AccessOptions(parse_creds(creds) if creds else None, mount.plain_http))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_close, source)
            image = await resolve_image(source, reference.selector, parse_platform(mount.platform), self._store)
            known = self.live.get(image.name)
            if known is None:
                layers = await load_image_layers(
                    source, self._store, image, lazy_only=lazy_only, progress=tell, accepted=isinstance(mount, Mount)
                )
                known = self.live.get(image.name)  # another order may have been quicker
                if known is None:
                    stack.pop_all()
                    return self.add(image, layers, source, background=background)
            known.use(background=background)
            return known

    def add(self, image: Image, layers: tuple[Layer, ...], source: ImageSource, *, background: bool) -> LiveImage:
        """A live image with one mount; it owns `source` from now on."""
        live = self.live[image.name] = LiveImage(image, layers, source)
        live.use(background=background)
        self._catalog.expect(image.name)
        self._nursery.start_soon(self._run, live)
        return live

    async def _run(self, live: LiveImage) -> None:
        try:
            await keep_running(f"what brings the files of {live.image.name}", self._live, live)
        finally:
            self._forget(live)
            await _close(live.source)

    async def _live(self, live: LiveImage) -> None:
        """Until nothing has mounted it for a while. What goes wrong is told to those who ask, until another try succeeds."""
        if live.failure and not live.mounts:
            return
        try:
            async with open_fetcher(self._store, live.source) as live.fetcher:
                if not live.objects:  # else a try before this one has made them
                    live.objects = tuple([await self._index(layer) for layer in live.layers])
                    live.layers = tuple(layer.without_entries() for layer in live.layers)
                self._catalog.add(live.image.name, live.fetcher, live.objects)
                live.failure = ""
                live.indexed.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._fetch_rest, live)
                    await live.uses.wait_until_unused()
                    self._forget(live)  # at once: what is being closed must not be found by the next mount
                    nursery.cancel_scope.cancel()
        except Exception as error:
            cause = foremost(error) if isinstance(error, BaseExceptionGroup) else error
            live.failure = f"what is missing cannot be had: {cause}"
            raise

    def _forget(self, live: LiveImage) -> None:
        """Nothing, where it is forgotten already: its name may be another one's by now."""
        name = live.image.name
        if self.live.get(name) is not live:
            return
        del self.live[name]
        self._catalog.remove(name)
        if live.mounts:
            self._catalog.expect(name)  # what it holds is unknown then, and not "not there"

    async def _index(self, layer: Layer) -> LayerObjects:
        known = self._catalog.known(key_of(layer))
        return known if known is not None else await trio.to_thread.run_sync(_index_layer, layer)

    async def _fetch_rest(self, live: LiveImage) -> None:
        """All of it, once a mount wants that; begun again by the next one where nobody wanted it any more."""
        while not live.rest_ended.is_set():
            await live.wants_background.wait()
            with trio.CancelScope() as live.fetching:
                await self._fetch_all(live)

    async def _fetch_all(self, live: LiveImage) -> None:
        assert live.fetcher is not None
        wanted = [Wanted(blob, end) for blob, end in zip(live.blobs, live.prefetch_ends, strict=True)]
        live.background = Background(self._store, live.fetcher, wanted)
        try:
            await live.background.run()
        except Exception as surprise:  # noqa: BLE001  the guard of what nobody asked for: it must not end the daemon for its readers
            _log.exception("the background fetch of %s has ended", live.image.name)
            live.background.trouble = f"the background fetch has ended: {surprise!r}"
        live.rest_ended.set()


async def _close(source: ImageSource) -> None:
    with trio.CancelScope(shield=True):
        await source.aclose()


def _index_layer(layer: Layer) -> LayerObjects:
    return LayerObjects(key_of(layer), LayerBlob.of(layer))
