"""A surprise in any task that lazyfs starts: it is logged by name and counted, who waits is told, and everything else goes on.

The table has an entry for each place in the source that starts a task; test_every_place_has_an_entry holds that. Each entry's scenario
runs the real code, twice: a RuntimeError and a MemoryError are thrown into the real task where it first waits.

    supervised(kind, …)    the failure ends at the supervisor that started the task, or at the one around it, and is counted as `kind`
    inside(kinds, …)       the task belongs to a nursery of a function that somebody awaits: the failure is raised there, at once. What
                           awaits it is a task of one of `kinds`, where it ends; the scenario is run by a supervisor as such a task
    root(…)                the process cannot do without it: the failure ends it, and the next one goes on
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import pytest
import trio

from lazyfs import tasks
from tests.conftest import LogWatch
from tests.unit.surprises import borders, containerds, fetching, layers, lazyfsd, live, portable
from tests.unit.surprises.places import Injection, places
from tests.unit.surprises.scene import PATIENCE, Scenario, Scene


class Entry(NamedTuple):
    """How a surprise at one place is looked at."""

    scenario: Scenario
    kinds: tuple[str, ...]
    is_inside: bool = False
    also: str = ""
    """What waits for it, and fails with an error that it expects."""


def supervised(kind: str, scenario: Scenario, *, also: str = "") -> Entry:
    return Entry(scenario, (kind,), also=also)


def inside(kinds: str, scenario: Scenario) -> Entry:
    return Entry(scenario, tuple(kinds.split(", ")), is_inside=True)


def root(scenario: Scenario) -> Entry:
    return Entry(scenario, ())


IMAGES = "order, revival, fetch"
"""What awaits a layer that is fetched whole: a mount, an earlier mount, a file that has gone missing."""
TABLE: dict[str, Entry] = {
    "containerd/relay.py _accept: relayed connection": supervised("relayed connection", borders.relayed),
    "containerd/relay.py _serve: _copy": supervised("relayed connection", borders.relayed),
    "containerd/relay.py relay: accept of calls": supervised("accept of calls", borders.relayed),
    "containerd/relay.py relay: relayed connection": supervised("relayed connection", borders.relayed),
    "containerd/resolver.py LayerResolver._building_ahead: start of builders": supervised("start of builders", layers.resolved),
    "containerd/resolver.py LayerResolver._find_manifest: connecting ahead": supervised("connecting ahead", layers.resolved),
    "containerd/resolver.py LayerResolver._start: TOC": supervised("TOC", layers.reported),
    "containerd/resolver.py LayerResolver.resolve: image": supervised("image", layers.reported),
    "containerd/lazy_layers.py LazyLayers.resume: pull of an earlier process": supervised(
        "pull of an earlier process", layers.started("pull of an earlier process")
    ),
    "containerd/snapshotter.py Snapshotter._use_layers_soon: layers of a root": supervised("layers of a root", layers.rooted),
    "containerd/snapshotter.py Snapshotter._commit_lazy: note of a layer's objects": supervised(
        "note of a layer's objects", layers.asked(layers.committed)
    ),
    "containerd/snapshotter.py Snapshotter._remove_later: removal of a snapshot": supervised(
        "removal of a snapshot", layers.asked(layers.removed)
    ),
    "containerd/snapshotter.py Snapshotter.cleanup: unmount of layers": supervised(
        "unmount of layers", layers.asked(layers.cleaned)
    ),
    "containerd/snapshotter.py Snapshotter.start: note of a layer's objects": supervised(
        "note of a layer's objects", layers.started("note of a layer's objects")
    ),
    "containerd/snapshotter.py Snapshotter.start: pulls of an earlier process": supervised(
        "pull of an earlier process", layers.started("pull of an earlier process")
    ),
    "containerd/snapshotter.py Snapshotter.start: removal of what an earlier process left": supervised(
        "removal of what an earlier process left", layers.started("removal of what an earlier process left")
    ),
    "daemon/control.py _execute_order: cancel_on_disconnect": supervised("order", borders.connected),
    "daemon/control.py serve_control.accept: control connection": supervised("control connection", borders.cut_off),
    "daemon/control.py serve_control: accept of orders": supervised("accept of orders", borders.accepted),
    "daemon/inode_warm_up.py InodeWarmUp.begin: inode warm-up": supervised("inode warm-up", borders.warmed_up),
    "daemon/lifetime.py Lifetime.wait_for_end: _first": root(lazyfsd.until_stopped),
    "daemon/mounts.py Mounts.handle_unmounts: end of a mount": supervised("end of a mount", borders.ended),
    "daemon/plugin.py Plugin._serve: import ahead": supervised("import ahead", containerds.plugged),
    "daemon/plugin.py Plugin._serve: refusals to a containerd": supervised("refusals to a containerd", containerds.unplugged),
    "daemon/plugin.py Plugin._serve: relay": supervised("relay", containerds.plugged),
    "daemon/plugin.py Plugin._serve: service of a containerd": supervised("service of a containerd", containerds.heard),
    "daemon/plugin.py Plugin.serve: service of containerds": supervised("service of containerds", containerds.unplugged),
    "daemon/plugin.py Plugin.start: start of a containerd": supervised("start of a containerd", containerds.refused),
    "daemon/plugin.py Plugin.start: unmount of dead roots": supervised("unmount of dead roots", containerds.dead),
    "daemon/pulling.py PullHandler.pull: _forward": supervised("order", borders.pulled),
    "daemon/recovery.py MountRecovery.begin: revival": supervised("revival", lazyfsd.goes_on("revival")),
    **{
        f"daemon/service.py Service.begin: {kind}": supervised(kind, lazyfsd.goes_on(kind))
        for kind in ("control socket", "mount watch", "refresh of overlays", "removal of dead containers", "store upkeep")
    },
    **{
        f"daemon/service.py {where}: {kind}": supervised(kind, lazyfsd.ends)
        for where, kind in (
            ("Service._unmount_all", "last unmount"),
            ("Service.stop", "last records"),
            ("Service.stop", "last sync"),
            ("Service.stop", "last unmount of layers"),
            ("Service.stop", "last unmounts"),
            ("_serve", "last sync"),
        )
    },
    "daemon/service.py Service.recover_mounts: recovery of mounts": supervised("recovery of mounts", lazyfsd.unrecovered),
    "daemon/service.py Service._has_roots: count of roots": supervised("count of roots", lazyfsd.counted),
    "daemon/service.py Service.start_containerds: start of containerds": supervised("snapshots of a containerd", lazyfsd.refused),
    "daemon/service.py _serve: metrics": supervised("metrics", lazyfsd.goes_on("metrics")),
    "daemon/service.py _serve: store limit": supervised("store limit", lazyfsd.goes_on("store limit")),
    "daemon/service.py _serve: service.serve_gate": root(lazyfsd.gate),
    "daemon/service.py _serve: watchdog": supervised("watchdog", lazyfsd.watchdog),
    "daemon/watchdog.py feed: _run_probe": supervised("watchdog", borders.watched),
    "eager/blob.py BlobReader._begin: ahead.fetch": inside(IMAGES, fetching.loaded),
    "eager/loading.py _Job._keep: keep_some": inside(IMAGES, fetching.loaded),
    "eager/loading.py fetch_layers: run_in_order": inside(IMAGES, fetching.loaded),
    "layertar/in_order.py run_in_order: run": inside(IMAGES, fetching.loaded),
    "eager/loading.py fetch_layers: context.bars.run": inside(IMAGES, fetching.loaded),
    "fetch/fetcher.py Fetcher._begin: fetch": supervised("fetch", fetching.fetched),
    "fetch/transfer.py Transfer._fetch_batches: self._unpack": supervised("fetch", fetching.unpacked),
    "fuse/loop.py serve: _cancel_at_end": root(fetching.looped),
    "fuse/session.py Session.answer: pyfuse3.main": root(fetching.greeted),
    "gate/failover.py _Hedge.run: self._try": supervised("request to a source", fetching.raced),
    "image/image.py all_of: one": inside("order, revival, image, TOC", fetching.documents),
    **{
        f"mount/upkeep.py Upkeep.run: {kind}": supervised(kind, borders.kept)
        for kind in ("release of removed files", "store limit", "store scrub", "store sync")
    },
    **{
        f"portable/mount.py {where}: {kind}": supervised("report of a pull" if kind == "pull" else kind, portable.mounted(kind))
        for where, kind in (
            ("PortableMount._run_pull", "progress of a pull"),
            ("PortableMount.run_pull", "report of a pull"),
            ("_serve", "last sync"),
            ("_serve", "pull"),
            ("_serve", "store upkeep"),
            ("_serve", "unmount on a signal"),
        )
    },
    "live/image.py Images.add: image": supervised("image", live.mounted),
    "live/image.py Images._run: image": supervised("image", live.mounted),
    "live/image.py Images._run_until_unused: background fetch": supervised("background fetch", live.mounted),
    "live/layers.py Layers.use: layer": supervised("layer", live.pulled, also="pull"),
    "live/layers.py Layers._run: layer": supervised("layer", live.pulled),
    "live/layers.py Layers._run_until_unused: layer index": supervised("layer index", live.pulled),
    "live/pulls.py Pulls.begin: pull": supervised("pull", live.pulled),
    "live/pulls.py Pulls._enqueue: pulls of a source": supervised("background fetch", live.pulled),
    "live/pulls.py Pulls._run_pull: leave_when_stopped": supervised("pulls of a source", live.pulled),
    "live/pulls.py Pulls._run_pull: leave_when_stuck": supervised("pulls of a source", live.pulled),
    "live/source.py Sources._start: source": supervised("source", live.pulled),
    "live/source.py Sources._run: fetcher": supervised("fetcher", live.pulled),
    "pull/downloads.py Downloads.begin: self._download": inside("order", portable.downloaded),
    "pull/pull.py _Pull._keep_documents: self._content.keep": inside("order", portable.pulled),
    "pull/pull.py _Pull._keep_documents: self._content.keep #2": inside("order", portable.pulled),
    "pull/pull.py _Pull.run: self._keep_documents": inside("order", portable.pulled),
    "registry/ranges.py Ranges.connect_ahead: self._connect_ahead": inside("connecting ahead", fetching.connected),
    "store/layer_lock.py lock_layers: locks.send_heartbeats": inside(IMAGES, fetching.with_locks),
}
SURPRISES = [RuntimeError("surprise"), MemoryError("surprise")]


def test_every_place_has_an_entry() -> None:
    """Whoever starts a task says here what becomes of a surprise in it."""
    assert set(places()) == set(TABLE)


@pytest.mark.parametrize("error", SURPRISES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_surprise_ends_nothing_else(
    name: str, error: Exception, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, expect_log: LogWatch
) -> None:
    """See above."""
    entry = TABLE[name]
    monkeypatch.setattr(tasks, "_FIRST_PAUSE", 0.0)
    injection = Injection(places()[name], type(error)(*error.args))
    injection.install(monkeypatch)
    with ExitStack() as stack:
        scene = Scene(tmp_path_factory.mktemp("s"), injection.error, monkeypatch, expect_log, stack)
        if entry.is_inside:
            trio.run(_inside, scene, entry)
        elif entry.kinds:
            trio.run(entry.scenario, scene)
        else:
            with pytest.raises((RuntimeError, MemoryError, ExceptionGroup)) as raised:
                trio.run(entry.scenario, scene)
            assert injection.error in _leaves(raised.value)
    assert injection.hits
    for kind in entry.kinds[:1]:
        expect_log(f"{kind}.* has failed.*: {type(error).__name__}.'surprise'")
        counts = scene.failures.counts()
        if counts.pop(entry.also, 0):
            expect_log(f"{entry.also} of .* has failed")
        assert counts == {kind: 1}


async def _inside(scene: Scene, entry: Entry) -> None:
    async with scene.tasks() as supervisor:
        ended = trio.Event()
        supervisor.start_soon(entry.kinds[0], entry.scenario, scene, wakes=[ended])
        with trio.fail_after(PATIENCE):
            await ended.wait()


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
