"""A portable mount as a whole, without a kernel to serve, and a pull into containerd without containerd."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import trio

from lazyfs.format.digest import digest_of
from lazyfs.format.manifest import Descriptor
from lazyfs.portable import mount
from lazyfs.portable.mount import MountRequest
from lazyfs.pull import pull
from lazyfs.pull.downloads import Downloads
from lazyfs.source.protocol import Document
from lazyfs.source.reference import parse_reference
from tests.unit.daemon.scripted import IMAGE
from tests.unit.fetch.scripted import FILES, ScriptedSource, make_layer
from tests.unit.surprises.scene import PATIENCE, Scenario, Scene, until


class ScriptedReporter:
    """A parent that waits."""

    def __init__(self) -> None:
        self.reports: list[object] = []
        self.is_let_go = trio.Event()

    def send(self, report: object) -> bool:
        self.reports.append(report)
        return True

    def detach(self) -> None:
        self.is_let_go.set()


def mounted(kind: str) -> Scenario:
    """The parent is let go with an answer, the mount goes on until the kernel has unmounted it, and its status tells."""

    async def scenario(scene: Scene) -> None:
        layer, blob = make_layer(FILES[:20])
        scene.store().close()
        unmounted, reporter, found = trio.Event(), ScriptedReporter(), []
        make = mount.PortableMount

        def known(*arguments: Any) -> mount.PortableMount:
            found.append(make(*arguments))
            scene.failures = found[-1]._failures
            return found[-1]

        async def image(*_: object, **__: object) -> object:
            return IMAGE

        async def layers(*_: object, **__: object) -> object:
            from lazyfs.format.entry import Entry
            from lazyfs.image.layer import Layer

            entries = tuple(
                Entry(b"f%d" % number, "reg", size=piece.chunk.size, chunks=(piece.chunk,))
                for number, piece in enumerate(layer.pieces)
            )
            descriptor = Descriptor("", layer.digest, layer.size, {}, None, {})
            return (Layer(descriptor, digest_of(b""), layer.size, entries),)

        async def serve_kernel(_: int) -> None:
            await unmounted.wait()

        for name, value in {
            "PortableMount": known,
            "open_source": lambda *_: ScriptedSource(blob),
            "resolve_image": image,
            "load_image_layers": layers,
            "serve_kernel": serve_kernel,
            "_FuseMount": lambda *_: nullcontext(),
            "_tune": lambda *_: None,
        }.items():
            scene.patch.setattr(mount, name, value)
        reference = parse_reference("docker://host/repo")
        request = MountRequest(reference, Path("/nowhere"), scene.folder / "store", cast("Any", None), cast("Any", None), "wait")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount._serve, request, reporter)
                await reporter.is_let_go.wait()
                if kind != "last sync":
                    await until(scene.failures.counts)
                    assert b'failures":{"' in await found[0].status()
                assert reporter.reports
                unmounted.set()

    return scenario


async def downloaded(scene: Scene) -> None:
    """One of two blobs."""

    class Content:
        async def fetch(self, *_: object) -> None:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        downloads = Downloads(
            ScriptedSource(), parse_reference("docker://host/repo"), cast("Any", Content()), nursery, lambda *_: None
        )
        for name in (b"1", b"2"):
            await downloads.begin(Descriptor("", digest_of(name), 1, {}, None, {})).wait()


async def pulled(scene: Scene) -> None:
    """An image without layers."""

    class Content:
        def __init__(self, *_: object) -> None: ...

        async def keep(self, *_: object) -> None:
            await trio.lowlevel.checkpoint()

    class Layers:
        def __init__(self, *_: object) -> None: ...

        async def download_ahead(self) -> None:
            await trio.sleep(0.01)

    @asynccontextmanager
    async def leased(*_: object) -> Any:
        yield

    class Documents:
        def __init__(self) -> None:
            self.seen = [Document("application/vnd.oci.image.manifest.v1+json", digest_of(b"{}"), _MANIFEST)]
            self.blobs = {IMAGE.manifest.config.digest: b"{}"}

    class Containerd:
        namespace = "ns"
        images = cast("Any", Content)

        async def call_unless(self, *_: object) -> object:
            return self

    for name, value in {"Content": Content, "Layers": Layers, "leased": leased}.items():
        scene.patch.setattr(pull, name, value)
    scene.patch.setattr(Content, "Create", None, raising=False)
    order = pull.PullRequest(parse_reference("docker://host/repo"), cast("Any", None), "lazyfs", complete=False)
    image = IMAGE._replace(manifest=IMAGE.manifest._replace(layers=()) if hasattr(IMAGE.manifest, "_replace") else _bare())
    image_pull = pull._Pull(cast("Any", Containerd()), ScriptedSource(), order, cast("Any", Documents()), image)
    await image_pull.run(lambda *_: None, lambda _: None)


def _bare() -> Any:
    import msgspec

    return msgspec.structs.replace(IMAGE.manifest, layers=())


_CONFIG = digest_of(b"{}")
_MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":'
    b'{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":2},"layers":[]}' % _CONFIG.encode()
)
