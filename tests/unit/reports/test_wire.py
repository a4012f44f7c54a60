"""What travels between clients and lazyfsd, held against lines that the version of 0ab514d and the next ones sent.

An upgrade leaves a running lazyfsd of the earlier version, and clients of the earlier version that wait for one of this version.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lazyfs.errors import LazyfsError, LocalError
from lazyfs.reports.orders import MountOrder, Order, PruneOrder, PullOrder, StatusOrder, UnmountOrder
from lazyfs.reports.results import LayerResult, MountResult, PruneResult, PullResult, UnmountResult
from lazyfs.reports.status import (
    ContainerdStatus,
    GateStatus,
    LatencyStatus,
    LayerStatus,
    LazyStatus,
    MountStatus,
    RefusedLayer,
    RepositoryStatus,
    ServiceStatus,
    StoreStatus,
)
from lazyfs.reports.steps import Accepted, Note, Progress, Step
from lazyfs.reports.wire import Refusal, Refused, Result, decode_order, decode_report, encode, encode_result

ORDERS: list[tuple[Order, bytes]] = [
    (
        MountOrder("t", "docker://r/a:1", "/mnt", "linux/amd64", True, "u:p", "wait", "/up", True, "/rec", True, 5),
        (
            b'{"type":"mount","ticket":"t","reference":"docker://r/a:1","directory":"/mnt","platform":"linux/amd64","plain_http":true,'
            b'"creds":"u:p","background":"wait","upper":"/up","volatile":true,"record":"/rec","lazy_only":true,"store_size":5}\n'
        ),
    ),
    (
        MountOrder("t", "docker://r/a:1", "/mnt", "linux/amd64"),
        (
            b'{"type":"mount","ticket":"t","reference":"docker://r/a:1","directory":"/mnt","platform":"linux/amd64","plain_http":false,'
            b'"creds":"","background":"on","upper":"","volatile":false,"record":"","lazy_only":false,"store_size":-1}\n'
        ),
    ),
    (UnmountOrder("/mnt", lazy=True), b'{"type":"unmount","directory":"/mnt","lazy":true}\n'),
    (StatusOrder("/mnt"), b'{"type":"status","directory":"/mnt"}\n'),
    (PruneOrder(True, 2.5), b'{"type":"prune","everything":true,"older_than":2.5}\n'),
    (
        PullOrder("r/a:1", "linux/amd64", "/run/c.sock", "default", "lazyfs", True, True),
        (
            b'{"type":"pull","reference":"r/a:1","platform":"linux/amd64","address":"/run/c.sock","namespace":"default",'
            b'"snapshotter":"lazyfs","plain_http":true,"complete":true}\n'
        ),
    ),
]
STEPS: list[tuple[Step | Refusal, bytes]] = [
    (Note("a layer"), b'{"note":"a layer"}\n'),
    (Accepted(), b'{"accepted":true}\n'),
    (Progress("fetching", 0, 9), b'{"task":"fetching","done_bytes":0,"total":9}\n'),
    (Progress("fetching", 1, 9, "away"), b'{"task":"fetching","done_bytes":1,"total":9,"trouble":"away"}\n'),
    (Refusal("no EROFS", 5, True), b'{"error":"no EROFS","code":5,"unsupported":true}\n'),
]
MOUNT = MountStatus(
    "/mnt", "r/a:1", 7, "/store", "on", False, 1, 10, 20, 1, 5, 2, 3, 4, 0, 0, {"Unreachable": 1}, "", "native", "/up",
    (LayerStatus("sha256:a", 5, "was not converted"),), 1, 2, 3, 4,
)  # fmt: skip
STATUS = ServiceStatus(
    7,
    (MOUNT,),
    StoreStatus(10, 1, 0, True, 3, 30, 4, 0),
    GateStatus(5, 6, 1, 8, 9, LatencyStatus((1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2), 7.5)),
    (
        ContainerdStatus(
            "k", 9, 1, 2, 3, (LazyStatus("docker://r/a", "sha256:a", 5, 1, ""),), 4, (RefusedLayer("key", "was not converted"),)
        ),
    ),
    (RepositoryStatus("docker://r/a", 3, 500, 2, 1, {"Unreachable": 2}, ""),),
    {"TOC": 1},
)
STATUS_LINE = (
    b'{"pid":7,"mounts":[{"directory":"/mnt","image":"r/a:1","pid":7,"store":"/store","background":"on","complete":false,'
    b'"missing_chunks":1,"missing_bytes":10,"total_bytes":20,"layers":1,"layer_bytes":5,"requests":2,"received_bytes":3,"chunks":4,'
    b'"unkept":0,"damaged":0,"errors":{"Unreachable":1},"trouble":"","mode":"native","upper":"/up","layer_states":[{"digest":'
    b'"sha256:a","size":5,"reason":"was not converted"}],"published":1,"entries":2,"reads":3,"kept":4,"failures":{}}],"store":{"used_bytes":10,'
    b'"held_bytes":1,"limit_bytes":0,"durable":true,"evicted_objects":3,"evicted_bytes":30,"scrubbed_bytes":4,"scrub_damaged":0},'
    b'"gate":{"published":5,"entries":6,"late":1,"reads":8,"errors":9,"latency":{"counts":[1,0,0,0,0,0,0,0,0,0,0,2],"seconds":7.5}},'
    b'"containerds":[{"name":"k","snapshots":9,"active":1,"views":2,"roots":3,"lazy":[{"reference":"docker://r/a","digest":'
    b'"sha256:a","size":5,"uses":1,"trouble":""}],"unpacked":4,"refused":[{"key":"key","reason":"was not converted"}],"trouble":""}],'
    b'"repositories":[{"name":"docker://r/a","requests":3,"received":500,"chunks":2,"unkept":1,"errors":{"Unreachable":2},'
    b'"trouble":""}],"failures":{"TOC":1},"done":true}\n'
)
RESULTS: list[tuple[Result, bytes]] = [
    (
        MountResult("/mnt", "r/a:1", "native", '{"os":"linux"}', 7),
        b'{"directory":"/mnt","image":"r/a:1","mode":"native","config":"{\\"os\\":\\"linux\\"}","pid":7,"done":true}\n',
    ),
    (UnmountResult("/mnt"), b'{"directory":"/mnt","done":true}\n'),
    (UnmountResult("/mnt", 6), b'{"directory":"/mnt","ending":6,"done":true}\n'),
    (
        PruneResult(objects=1, documents=2, parts=3, bytes=4, held_bytes=5, used_bytes=6),
        b'{"objects":1,"documents":2,"parts":3,"bytes":4,"held_bytes":5,"used_bytes":6,"done":true}\n',
    ),
    (
        PullResult("r/a:1", "sha256:i", "sha256:m", (LayerResult("sha256:a", 5, "sha256:c", "", True),)),
        (
            b'{"image":"r/a:1","digest":"sha256:i","manifest":"sha256:m","layers":[{"digest":"sha256:a","size":5,"chain_id":"sha256:c",'
            b'"reason":"","lazy":true}],"done":true}\n'
        ),
    ),
    (STATUS, STATUS_LINE),
]


@pytest.mark.parametrize(("order", "line"), ORDERS)
def test_orders_are_what_they_were(order: Order, line: bytes) -> None:
    """An earlier lazyfsd carries out what this client orders, and this lazyfsd what an earlier client orders."""
    assert encode(order) == line
    assert decode_order(line) == order


@pytest.mark.parametrize(("step", "line"), STEPS)
def test_steps_are_what_they_were(step: Step | Refusal, line: bytes) -> None:
    """An earlier client shows them, and this client shows those of an earlier lazyfsd."""
    assert encode(step) == line
    if isinstance(step, Refusal):
        with pytest.raises(Refused, match=step.error) as refused:
            decode_report(line, MountResult)
        assert (refused.value.exit_code, refused.value.unsupported) == (step.code, step.unsupported)
    else:
        assert decode_report(line, MountResult) == step


@pytest.mark.parametrize(("result", "line"), RESULTS)
def test_results_are_what_they_were(result: Result, line: bytes) -> None:
    """Down to the order of their fields, which `--json` shows."""
    assert encode_result(result) == line
    assert decode_report(line, type(result)) == result


@pytest.mark.parametrize(
    ("line", "kind", "value"),
    [
        (b'{"task":"fetching","done_bytes":9,"total":9,"trouble":""}', MountResult, Progress("fetching", 9, 9)),
        (
            b'{"objects":1,"documents":2,"bytes":4,"held_bytes":5,"used_bytes":6,"done":true}',
            PruneResult,
            PruneResult(objects=1, documents=2, bytes=4, held_bytes=5, used_bytes=6),
        ),
        (STATUS_LINE.replace(b'"unpacked":4,"refused":[{"key":"key","reason":"was not converted"}],"trouble":""',
                             b'"unpacked":4,"refused":[{"key":"key","reason":"was not converted"}]'), ServiceStatus, STATUS),
        (STATUS_LINE.replace(b'"pid":7,"mounts"', b'"pid":7,"new":[1],"mounts"'), ServiceStatus, STATUS),
        (
            STATUS_LINE.replace(b',"failures":{}', b"").replace(b',"failures":{"TOC":1}', b""),
            ServiceStatus,
            msgspec.structs.replace(STATUS, failures={}),
        ),
        (b"{}", PullResult, None),
        (b'{"percent":3}', PullResult, None),
    ],
    ids=["an empty trouble", "no parts", "a containerd without trouble", "a new field", "no failures", "a lazy layer", "a new step"],
)  # fmt: skip
def test_other_versions_say_less_or_more(line: bytes, kind: type[Any], value: object) -> None:
    """What is missing has its default, what is new is skipped."""
    assert decode_report(line, kind) == value


def test_an_earlier_refusal() -> None:
    """Of an order that an earlier lazyfsd did not understand."""
    with pytest.raises(Refused, match="does not understand") as refused:
        decode_report(b'{"error":"lazyfsd does not understand this client","code":1}', PullResult)
    assert (refused.value.exit_code, refused.value.unsupported) == (1, False)


@pytest.mark.parametrize("line", [b"hello", b'{"done":true}', b'{"task":"a"}', b"[]", b'{"error":5}', b"\xff"])
def test_nonsense_is_an_error_of_ours(line: bytes) -> None:
    """A report that cannot be read names the cause, and what to do."""
    with pytest.raises(LocalError, match="cannot be read") as unreadable:
        decode_report(line, MountResult)
    assert isinstance(unreadable.value, LazyfsError) and "another version" in unreadable.value.hint


def test_values_are_frozen() -> None:
    """A report is passed on, and changed by nobody."""
    for value, _ in (*ORDERS, *STEPS, *RESULTS):
        with pytest.raises(AttributeError):
            setattr(value, msgspec.structs.fields(value)[0].name, "")
