"""A process that builds EROFS images for lazyfs/native/builder.py, layer by layer, until the end of its standard input.

It is a separate process because an image takes up to a second of pure Python, too long for an event loop, and it imports little
because the first mount waits for its start. It exchanges messages with its parent, each one line of JSON:

    parent  Read         which document to read
    child   NeededBelow  what the layer needs from below; or Failed
    parent  Build        where to put the image, and what is below; or another Read, if the image exists already
    child   Built        it is published; or Failed
"""

from __future__ import annotations

import gc
import sys

import msgspec

from lazyfs.erofs.work import Build, Read, Worker


def main() -> None:
    """Answer messages until standard input ends."""
    gc.disable()  # nothing here makes cycles, and the heap to scan is large
    worker = Worker()
    questions = msgspec.json.Decoder(Read | Build)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(worker.answer(questions.decode(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
