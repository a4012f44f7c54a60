"""A process that builds images for lazyfs/native/builder.py, layer after layer, until its standard input ends.

It is a process of its own because an image takes up to a second of pure Python, which no event loop should wait for, and
it imports little because its start is part of somebody's first mount. It takes turns with its parent, one line of JSON a
message:

    parent  Read       which document to read
    child   NeededBelow  what the layer needs from below; or Failed
    parent  Build      where to put the image, and what is below; or another Read, when that image is there already
    child   Built      it is published; or Failed
"""

from __future__ import annotations

import gc
import sys

import msgspec

from lazyfs.erofs.work import Build, Read, Worker


def main() -> None:
    """Answer until there are no more questions."""
    gc.disable()  # nothing here makes cycles, and what it would look through is large
    worker = Worker()
    questions = msgspec.json.Decoder(Read | Build)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(worker.answer(questions.decode(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
