"""Layers whose TOC breaks a rule, as containerd asks for them: it unpacks them itself, and is told why; no pull fails for that."""

from __future__ import annotations

import pytest

from lazyfs.snapshots.labels import REASON
from tests.bad.oci import Oci
from tests.bad.test_bad import CASES, Bad
from tests.bad.test_bad import TABLE as KNOWN
from tests.lazy_tree import labels_of
from tests.lying_registry import LyingRegistry
from tests.plugin import Plugin
from tests.snapshot_lab import Lab

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNLABELLED = {"toc_of_no_digest", "toc_of_no_annotation"}
"""Found in containerd's labels, before anybody is asked for a TOC: tests/unit/snapshots."""
TABLE = [
    bad
    for bad in KNOWN
    if bad.command == "ls" and bad.code == 3 and bad.case.startswith(("toc_", "file_")) and bad.case not in UNLABELLED
]
"""What `lazyfs ls` finds wrong with a TOC."""


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.case)
def test_a_bad_layer_is_an_ordinary_one(bad: Bad, lab: Lab, snapshotter: Plugin) -> None:
    """Answered with a directory to unpack into, and the words that the error has everywhere."""
    oci = Oci(lab.folder / "image")
    CASES[bad.case](oci)
    with LyingRegistry(oci.path) as registry:
        (mount,) = lab.client.prepare(lab.key("extract-1"), labels=labels_of(oci.path, registry.server.host))
    assert mount.type == "bind" and mount.source.startswith(str(lab.snapshots))
    reason = lab.client.stat(lab.key("extract-1")).labels[REASON]
    for words in bad.words:
        assert words.replace("LAYER", oci.layer) in reason
    assert reason in snapshotter.logged()
