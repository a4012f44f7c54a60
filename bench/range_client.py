"""One client that reads ranges of a blob, in a process of its own, so that its CPU time is its own.

`python -m bench.range_client ours|httpx docker://HOST/REPO DIGEST SIZE LENGTH COUNT` prints seconds and CPU seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import trio

from lazyfs.format.digest import Digest
from lazyfs.source.open import AccessOptions, open_source
from lazyfs.source.reference import parse_reference

PARALLEL = 8
Fetch = Callable[[int, int], Awaitable[Any]]
"""Read bytes `[start, end)` of the blob."""


class Blob(NamedTuple):
    """What is read."""

    repository: str
    digest: Digest
    size: int


@asynccontextmanager
async def ours(blob: Blob) -> AsyncIterator[Fetch]:
    """The range reader."""
    source = open_source(parse_reference(blob.repository), AccessOptions())

    async def fetch(start: int, end: int) -> None:
        async with source.open_range(blob.digest, blob.size, start, end) as stream:
            await stream.receive_exactly(end - start)

    try:
        yield fetch
    finally:
        await source.aclose()


@asynccontextmanager
async def by_httpx(blob: Blob) -> AsyncIterator[Fetch]:
    """httpx, as its documentation has it."""
    host, _, path = blob.repository.removeprefix("docker://").partition("/")
    url = f"http://{host}/v2/{path}/blobs/{blob.digest}"

    async with httpx.AsyncClient(trust_env=False) as client:

        async def fetch(start: int, end: int) -> None:
            response = await client.get(url, headers={"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"})
            if response.status_code != 206 or len(response.content) != end - start:
                raise RuntimeError(f"{url} answers {response.status_code} with {len(response.content)} bytes")

        yield fetch


async def main(arguments: list[str]) -> None:
    """Fetch `count` ranges, a few at a time, and say what it took."""
    client = {"ours": ours, "httpx": by_httpx}[arguments[0]]
    blob = Blob(arguments[1], Digest(arguments[2]), int(arguments[3]))
    length, count = map(int, arguments[4:])
    starts = iter([number * length % (blob.size - length) for number in range(count)])
    async with client(blob) as fetch:

        async def one() -> None:
            for start in starts:
                await fetch(start, start + length)

        await fetch(0, 1)  # imports and the first connection are no part of it
        began, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(PARALLEL):
                nursery.start_soon(one)
        print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
