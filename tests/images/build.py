"""Builds layers: each is the upper directory of a real overlayfs mount in which apt or pip ran.

The script runs in namespaces of its own, over a /dev with the harmless devices only. Package caches are bound in from the
folder of images, so that neither they nor the lists end up in a layer and nothing is downloaded twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.images import edge
from tests.images.layer import Blob, LayerFile, write_layer
from tests.images.layout import Layout
from tests.images.table import IMAGES, LAYERS, chain

DEFAULT_FOLDER = Path("/var/tmp/lazyfs-images")
RECIPE_VERSION = 1
"""Part of every recipe's key: raise it when this file makes another layer out of the same script."""

# The mount of the layer is private before anything is mounted in it, so that nothing shows outside; and `unshare` leaves
# the rest alone, because it could not make / private in a chroot, where / is not a mount point.
CHROOT = r"""set -e
root=$1
mount --make-rprivate $root
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount -t tmpfs -o mode=755 tmpfs $root/dev
mkdir $root/dev/shm $root/dev/pts
for name in null zero full random urandom tty; do
    : > $root/dev/$name
    mount --bind /dev/$name $root/dev/$name
done
ln -s /proc/self/fd $root/dev/fd
ln -s fd/0 $root/dev/stdin
ln -s fd/1 $root/dev/stdout
ln -s fd/2 $root/dev/stderr
for folder in tmp mnt run; do mount -t tmpfs tmpfs $root/$folder; done
mkdir -p $root/run/lock $root/mnt/pip $root/mnt/out
mount --bind $2/pip $root/mnt/pip
mount --bind $3 $root/mnt/out
mount --bind $2/archives $root/var/cache/apt/archives
mount --bind $2/lists $root/var/lib/apt/lists
mount --bind /etc/resolv.conf $root/etc/resolv.conf
cp -L /etc/ssl/certs/ca-certificates.crt $root/mnt/ca.crt
exec chroot $root /bin/sh -c "$4"
"""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_CERT": "/mnt/ca.crt",
    "PIP_CACHE_DIR": "/mnt/pip",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PYTHONDONTWRITEBYTECODE": "1",
}
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
BASE_FILES = {
    "etc/resolv.conf": "",
    "etc/hostname": "",
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",  # packages start no services here
    "etc/dpkg/dpkg.cfg.d/speed": "force-unsafe-io\n",
    "etc/apt/apt.conf.d/no-caches": 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n',
    "etc/apt/apt.conf.d/no-languages": 'Acquire::Languages "none";\n',
}
LEFT_BY_INSTALLING = (
    "var/log/apt/*", "var/log/*.log", "var/cache/ldconfig/*", "var/cache/debconf/*-old", "var/lib/dpkg/*-old",
    "var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*", "debootstrap",
)  # fmt: skip


class BuildFailed(Exception):
    """A layer's script or debootstrap failed; the message ends with what it said last."""


class Builder:
    """Builds images in one folder, which it creates. Needs root, debootstrap, overlayfs and the network of apt and pip."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get("LAZYFS_IMAGES", DEFAULT_FOLDER))
        for name in ("archives/partial", "lists/partial", "pip", "layers"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.layout = Layout(self.folder / "oci")

    def build(self, image: str, say: Callable[[str], None] = lambda line: None) -> str:
        """Build an image, unless it is there. How `oci:` notation names it; processes may build at the same time."""
        if platform.machine() != "x86_64":
            raise BuildFailed(f"images are built for x86_64, and this machine is {platform.machine()}")
        with self._alone():
            layers = [(self._layer(name, say), LAYERS[name].script[:200]) for name in chain(IMAGES[image].layer)]
            config = {"Env": ["PATH=" + ENVIRONMENT["PATH"]], "Cmd": list(IMAGES[image].cmd)}
            self.layout.add_image(image, layers, config)
        return f"oci:{self.layout.path}:{image}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _home(self, name: str) -> Path:
        """Where a layer is built: a name that tells its whole recipe, so that another recipe is another folder."""
        recipe, layer = [repr(RECIPE_VERSION)], LAYERS[name]
        while layer.parent:
            recipe.append(inspect.getsource(getattr(edge, layer.by_hand)) if layer.by_hand else repr(layer))
            layer = LAYERS[layer.parent]
        recipe.append(repr(layer))
        return self.folder / "layers" / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"

    def _layer(self, name: str, say: Callable[[str], None]) -> Blob:
        layer, home = LAYERS[name], self._home(name)
        done = home / "blob.json"
        if done.exists():
            blob = Blob(**json.loads(done.read_text()))
            if self.layout.blob(blob.digest).exists():
                return blob
        if layer.scratch:
            self._layer(layer.parent, say)
        start = time.monotonic()
        if (home / "mount").is_mount():  # of a run that was killed
            subprocess.run(["umount", str(home / "mount")], check=True)
        shutil.rmtree(home, ignore_errors=True)
        upper = home / "upper"
        upper.mkdir(parents=True)
        write: Callable[[LayerFile], None] = partial(write_layer, upper, exact_times=layer.exact_times)
        if layer.by_hand:
            write = getattr(edge, layer.by_hand)
        elif layer.parent:
            self._run(name, home, upper)
        else:
            self._debootstrap(home, upper)
        for pattern in LEFT_BY_INSTALLING:
            for path in upper.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        blob = self.layout.add_layer(write)
        written = home / "blob.json.partial"
        written.write_text(json.dumps(blob._asdict()))
        written.rename(done)
        say(f"layer {name}: {blob.size / 1e6:.1f} MB, {blob.tar_size / 1e6:.1f} MB of tar, {time.monotonic() - start:.1f} s")
        return blob

    def _debootstrap(self, home: Path, upper: Path) -> None:
        upper.chmod(0o755)
        self._command(["debootstrap", "--variant=minbase", "bookworm", str(upper), *configured_mirror()], home, dict(os.environ))
        for name, text in BASE_FILES.items():
            (upper / name).write_text(text)
        (upper / "usr/sbin/policy-rc.d").chmod(0o755)

    def _run(self, name: str, home: Path, upper: Path) -> None:
        layer = LAYERS[name]
        below = [str(self._home(part) / "upper") for part in reversed(chain(layer.parent))]
        work, mount, thrown_away = home / "work", home / "mount", home / "thrown-away"
        for path in (work, mount, thrown_away):
            path.mkdir()
        upper.chmod(0o755)
        # Paths relative to the folder of layers: the option of a deep chain must fit into a page.
        top, out = (thrown_away, upper) if layer.scratch else (upper, thrown_away)
        lower = ":".join(os.path.relpath(path, home.parent) for path in below)
        options = f"lowerdir={lower},upperdir={home.name}/{top.name},workdir={home.name}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(mount)], check=True, cwd=home.parent)
        try:
            inside = ["unshare", "--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
            script = ["sh", "-c", CHROOT, "sh", str(mount), str(self.folder), str(out), layer.script]
            environment = ENVIRONMENT | {key: os.environ[key] for key in PASSED_ON if key in os.environ}
            self._command([*inside, *script], home, environment)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
        for path in (work, mount, thrown_away):
            shutil.rmtree(path)

    def _command(self, command: list[str], home: Path, environment: dict[str, str]) -> None:
        log = home / "log"
        with log.open("wb") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
            )
        if done.returncode:
            last = log.read_text(errors="replace")[-2000:]
            raise BuildFailed(f"{home.name} failed with {done.returncode}. {log} ends with:\n{last}")


def configured_mirror() -> list[str]:
    """The mirror that this machine's apt uses for bookworm, as debootstrap's last argument; none leaves it to debootstrap."""
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages", "Component: main"]
    targets = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    mirrors = [site for release, _, site in (line.partition(" ") for line in targets.splitlines()) if release == "bookworm"]
    return mirrors[:1]
