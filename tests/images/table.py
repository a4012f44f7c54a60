"""The layers and images there are. A new image takes a line in each table."""

from __future__ import annotations

from typing import NamedTuple

from tests.images import edge

APT = "apt-get update -qq && apt-get install -y -qq --no-install-recommends "
PIP = "pip install -q --break-system-packages "
HELLO_CLASS = (  # public class Hello { public static void main(String[] a) { System.out.println("hello"); } }
    "yv66vgAAAD0AHQoAAgADBwAEDAAFAAYBABBqYXZhL2xhbmcvT2JqZWN0AQAGPGluaXQ+AQADKClWCQAIAAkHAAoMAAsADAEAEGphdmEvbGFuZy9TeXN0ZW0B"
    "AANvdXQBABVMamF2YS9pby9QcmludFN0cmVhbTsIAA4BAAVoZWxsbwoAEAARBwASDAATABQBABNqYXZhL2lvL1ByaW50U3RyZWFtAQAHcHJpbnRsbgEAFShM"
    "amF2YS9sYW5nL1N0cmluZzspVgcAFgEABUhlbGxvAQAEQ29kZQEAD0xpbmVOdW1iZXJUYWJsZQEABG1haW4BABYoW0xqYXZhL2xhbmcvU3RyaW5nOylWAQAK"
    "U291cmNlRmlsZQEACkhlbGxvLmphdmEAIQAVAAIAAAAAAAIAAQAFAAYAAQAXAAAAHQABAAEAAAAFKrcAAbEAAAABABgAAAAGAAEAAAABAAkAGQAaAAEAFwAA"
    "ACEAAgABAAAACbIABxINtgAPsQAAAAEAGAAAAAYAAQAAAAEAAQAbAAAAAgAc"
)
REDIS_PROBE = """redis-server --daemonize yes --save '' --dir /tmp > /dev/null
for i in $(seq 100); do redis-cli ping 2> /dev/null && break; sleep 0.1; done
redis-cli shutdown nosave"""


class Layer(NamedTuple):
    """One layer: a shell script, run as root in a chroot over its parent. `debootstrap` makes the one without a parent."""

    parent: str
    script: str
    scratch: bool = False
    """The script leaves in /mnt/out what an image from nothing holds; the parent only lends its tools."""
    exact_times: bool = False
    """Keep the nanoseconds of times. The builders of ordinary images write whole seconds."""
    by_hand: str = ""
    """The name of a function in edge.py that writes the tar, instead of a script: what no file system yields."""


class Image(NamedTuple):
    """One image, and a command whose output shows that it works."""

    layer: str
    cmd: tuple[str, ...]
    probe: tuple[str, ...]
    expect: str
    """A part of the probe's standard output."""


LAYERS = {
    "base": Layer("", "debootstrap --variant=minbase bookworm"),
    "common": Layer("base", APT + "ca-certificates curl netbase tzdata procps"),
    "python": Layer("common", APT + "python3 python3-pip python3-venv"),
    "scipy": Layer("python", PIP + "numpy scipy pandas"),
    "scipy-app": Layer(
        "scipy", "mkdir /app && echo 'import numpy, scipy.linalg, pandas; print(numpy.eye(3).sum())' > /app/main.py"
    ),
    "torch": Layer("python", PIP + "torch"),
    "torch-app": Layer("torch", "mkdir /app && echo 'import torch; print(torch.ones(2).sum())' > /app/main.py"),
    "node": Layer("common", APT + "nodejs"),
    "nginx": Layer("common", APT + "nginx && ln -sf /dev/stdout /var/log/nginx/access.log"),
    "redis": Layer("common", APT + "redis-server redis-tools"),
    "jre": Layer("common", APT + "openjdk-17-jre-headless"),
    "jre-app": Layer("jre", f"mkdir /app && echo {HELLO_CLASS} | base64 -d > /app/Hello.class"),
    "gcc": Layer("common", APT + "gcc libc6-dev make"),
    "gcc-app": Layer("gcc", "mkdir /app && echo 'int puts(const char *); int main(void) { puts(\"hello\"); }' > /app/hello.c"),
    "busybox": Layer(
        "base",
        "cd /tmp && apt-get update -qq && apt-get download -qq busybox-static && dpkg-deb -x busybox-static*.deb . && cd /mnt/out &&"
        " mkdir bin etc tmp proc sys dev root && cp /tmp/bin/busybox bin/ && echo root:x:0:0:root:/root:/bin/sh > etc/passwd &&"
        " echo root:x:0: > etc/group && for name in $(bin/busybox --list); do [ $name = busybox ] || ln bin/busybox bin/$name; done",
        scratch=True,
    ),
    "edge": Layer("python", edge.SCRIPT, exact_times=True),
    "edge-by-hand": Layer("edge", "", by_hand="write_by_hand"),
}

IMAGES = {
    "busybox": Image("busybox", ("sh",), ("echo", "hello"), "hello"),
    "debian": Image("base", ("bash",), ("echo", "hello"), "hello"),
    "python": Image("python", ("python3",), ("python3", "-c", 'print("hello")'), "hello"),
    "scipy": Image("scipy-app", ("python3", "/app/main.py"), ("python3", "/app/main.py"), "3.0"),
    "node": Image("node", ("node",), ("node", "-e", "console.log('hello')"), "hello"),
    "nginx": Image(
        "nginx",
        ("nginx", "-g", "daemon off;"),
        ("sh", "-c", "nginx && curl -fsS http://127.0.0.1/ | grep '<title>'; nginx -s stop"),
        "Welcome to nginx",
    ),
    "redis": Image(
        "redis",
        ("redis-server",),
        ("sh", "-c", REDIS_PROBE),
        "PONG",
    ),
    "openjdk": Image("jre-app", ("java", "-cp", "/app", "Hello"), ("java", "-cp", "/app", "Hello"), "hello"),
    "gcc": Image("gcc-app", ("gcc",), ("sh", "-c", "gcc -O2 -o /tmp/hello /app/hello.c && /tmp/hello"), "hello"),
    "torch": Image("torch-app", ("python3", "/app/main.py"), ("python3", "/app/main.py"), "tensor(2.)"),
    "edge": Image("edge-by-hand", ("bash",), ("sh", "-c", "ls /edge/many | wc -l; cat /edge/swap"), "5000"),
}


def chain(layer: str) -> list[str]:
    """The names of a layer's ancestors and its own, lowest first, as they lie in an image."""
    found: list[str] = []
    while layer:
        found.append(layer)
        layer = "" if LAYERS[layer].scratch else LAYERS[layer].parent
    return found[::-1]
