"""What a kubelet asks of containerd, as far as tests need it: Debian 12 has no crictl.

Pods have the host's network, so that no CNI plugin is needed. Whatever waits has a deadline; gRPC's errors (`grpc.RpcError`,
with `code()` and `details()`) come out as they are.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import grpc

from tests.cri.runtime.v1 import api_pb2 as cri
from tests.cri.runtime.v1 import api_pb2_grpc as services

PATIENCE_S = 60
PULL_S = 600
LOOK_AGAIN_S = 0.02


class Image(NamedTuple):
    """An image as CRI knows it. `id` is the config's digest; `size` what CRI adds up of its blobs; at most one of the users is set."""

    id: str
    tags: list[str]
    digests: list[str]
    size: int
    uid: int | None
    username: str


class Ended(NamedTuple):
    """How a container, or a command in one, ended."""

    code: int
    stdout: str
    stderr: str
    reason: str = ""


class Cri:
    """CRI of the containerd at a unix socket. `logs` is a folder for containers' logs."""

    def __init__(self, socket: Path, logs: Path) -> None:
        self.logs = logs
        # No proxy of the environment, and no second try: a call that fails is what a test wants to see.
        options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options)
        self.images, self.runtime = services.ImageServiceStub(self._channel), services.RuntimeServiceStub(self._channel)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def version(self) -> str:
        """The runtime's name and version; waits for a containerd that is starting."""
        said = self.runtime.Version(cri.VersionRequest(), timeout=PATIENCE_S, wait_for_ready=True)
        return f"{said.runtime_name} {said.runtime_version}"

    def unmet(self) -> list[str]:
        """What CRI itself says that it lacks. The network is not asked for: there is no CNI."""
        conditions = self.runtime.Status(cri.StatusRequest(), timeout=PATIENCE_S).status.conditions
        return [f"{one.type}: {one.reason} {one.message}" for one in conditions if not one.status and one.type != "NetworkReady"]

    def pull(self, reference: str, user: str = "", password: str = "", timeout: float = PULL_S) -> str:
        """HOST:PORT/NAME:TAG, without a transport. The image's ID."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=reference))
        if user:
            request.auth.CopyFrom(cri.AuthConfig(username=user, password=password))
        return self.images.PullImage(request, timeout=timeout).image_ref

    def image(self, reference: str) -> Image | None:
        """By name, digest or ID; None for one that is not here."""
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        answer = self.images.ImageStatus(request, timeout=PATIENCE_S)
        return _image(answer.image) if answer.HasField("image") else None

    def list_images(self) -> list[Image]:
        """All that CRI has."""
        return [_image(one) for one in self.images.ListImages(cri.ListImagesRequest(), timeout=PATIENCE_S).images]

    def remove_image(self, reference: str) -> None:
        """With all its names. None such is not an error."""
        self.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)), timeout=PATIENCE_S)

    def image_bytes(self) -> dict[str, int]:
        """Mount point -> bytes used, of the file systems that hold images: what a kubelet judges by whether to collect garbage."""
        answer = self.images.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=PATIENCE_S)
        return {one.fs_id.mountpoint: one.used_bytes.value for one in answer.image_filesystems}

    def list_pods(self) -> list[str]:
        """The IDs of all pods, stopped ones included."""
        return [one.id for one in self.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=PATIENCE_S).items]

    def list_containers(self) -> list[str]:
        """The IDs of all containers, in whatever state."""
        return [one.id for one in self.runtime.ListContainers(cri.ListContainersRequest(), timeout=PATIENCE_S).containers]

    @contextmanager
    def pod(self) -> Iterator[Pod]:
        """A new pod; stopped and removed at the end, with what runs in it."""
        name = f"pod-{os.getpid()}-{next(self._numbers)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            log_directory=str(self.logs / name),
            linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=_namespaces())),
        )
        (self.logs / name).mkdir(parents=True)
        started = self.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=PULL_S)  # may pull its own image
        try:
            yield Pod(self, started.pod_sandbox_id, config)
        finally:
            stop = cri.StopPodSandboxRequest(pod_sandbox_id=started.pod_sandbox_id)
            self.runtime.StopPodSandbox(stop, timeout=PATIENCE_S)
            remove = cri.RemovePodSandboxRequest(pod_sandbox_id=started.pod_sandbox_id)
            self.runtime.RemovePodSandbox(remove, timeout=PATIENCE_S)


class Pod:
    """A running pod."""

    def __init__(self, service: Cri, identity: str, config: cri.PodSandboxConfig) -> None:
        self.id = identity
        self._service, self._config = service, config
        self._numbers = itertools.count(1)

    def create(self, image: str, *command: str, user: str = "", uid: int | None = None) -> Container:
        """A container of an image that was pulled, not started yet. Without `command`, what the image says."""
        name = f"container-{next(self._numbers)}"
        security = cri.LinuxContainerSecurityContext(namespace_options=_namespaces(), run_as_username=user)
        if uid is not None:
            security.run_as_user.value = uid
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
            linux=cri.LinuxContainerConfig(security_context=security),
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self._config)
        created = self._service.runtime.CreateContainer(request, timeout=PATIENCE_S)
        return Container(self._service, created.container_id, Path(self._config.log_directory) / config.log_path)

    def run(self, image: str, *command: str, user: str = "", uid: int | None = None, timeout: float = PATIENCE_S) -> Ended:
        """Create a container, start it, wait for its end, remove it."""
        container = self.create(image, *command, user=user, uid=uid)
        try:
            container.start()
            return container.wait(timeout)
        finally:
            container.remove()


class Container:
    """A container, created. `log` is the file that CRI writes."""

    def __init__(self, service: Cri, identity: str, log: Path) -> None:
        self.id, self.log = identity, log
        self._runtime = service.runtime

    def start(self) -> None:
        """Returns when its process runs."""
        self._runtime.StartContainer(cri.StartContainerRequest(container_id=self.id), timeout=PATIENCE_S)

    def status(self) -> cri.ContainerStatus:
        """As CRI has it; `state` is one of cri.CONTAINER_CREATED, _RUNNING, _EXITED, _UNKNOWN."""
        return self._runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=self.id), timeout=PATIENCE_S).status

    def wait(self, timeout: float = PATIENCE_S) -> Ended:
        """Until it has exited. TimeoutError, with what it wrote, when it has not after `timeout` seconds."""
        end = time.monotonic() + timeout
        while (status := self.status()).state != cri.CONTAINER_EXITED:
            if time.monotonic() > end:
                raise TimeoutError(f"container {self.id} runs after {timeout} s; it wrote: {self.output()}")
            time.sleep(LOOK_AGAIN_S)
        stdout, stderr = self.output()
        return Ended(status.exit_code, stdout, stderr, status.reason)

    def output(self) -> tuple[str, str]:
        """What it wrote to stdout and stderr so far."""
        return parse_log(self.log.read_bytes())

    def execute(self, *command: str, timeout: int = PATIENCE_S) -> Ended:
        """Run a command inside; containerd ends it after `timeout` seconds."""
        request = cri.ExecSyncRequest(container_id=self.id, cmd=command, timeout=timeout)
        done = self._runtime.ExecSync(request, timeout=timeout + PATIENCE_S)
        return Ended(done.exit_code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def stop(self, grace: int = 0) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds; returns when it has exited."""
        self._runtime.StopContainer(cri.StopContainerRequest(container_id=self.id, timeout=grace), timeout=grace + PATIENCE_S)

    def remove(self) -> None:
        """By force where it runs. None such is not an error."""
        self._runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self.id), timeout=PATIENCE_S)


def parse_log(log: bytes) -> tuple[str, str]:
    """What a container wrote to stdout and stderr. A line is `TIME STREAM TAG TEXT`; the last one may not be all there yet.

    A long line comes in parts of tag P, whose newlines are the log's own; so is the one after an end without a newline.
    """
    texts = {b"stdout": b"", b"stderr": b""}
    for line in log.split(b"\n")[:-1]:
        _, stream, tag, text = line.split(b" ", 3)
        texts[stream] += text if tag == b"P" else text + b"\n"
    return texts[b"stdout"].decode(errors="replace"), texts[b"stderr"].decode(errors="replace")


def _namespaces() -> cri.NamespaceOption:
    """The host's network, and a process tree of each container's own."""
    return cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)


def _image(image: cri.Image) -> Image:
    uid = image.uid.value if image.HasField("uid") else None
    return Image(image.id, list(image.repo_tags), list(image.repo_digests), image.size, uid, image.username)
