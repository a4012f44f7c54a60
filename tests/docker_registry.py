"""Debian's docker-registry on a free loopback port, with its requests counted.

The counts come from the registry's own access log and not from a proxy, which would be one more thing to trust and would slow down
what is measured. The registry writes a line when it has answered, so reading the log first sends a request and waits for
its line.
"""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple, Self

CONFIG = """version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "{address}"}}
"""
LINE = re.compile(
    r'^\S+ \S+ \S+ \[[^\]]*\] "(?P<method>\w+) (?P<path>\S+) [^"]*" (?P<status>\d+) (?P<size>\d+) "[^"]*" "(?P<agent>[^"]*)"'
)
PATIENCE_S = 20


class Request(NamedTuple):
    """One answered request; `size` is the size of the response body in bytes."""

    method: str
    path: str
    status: int
    size: int
    agent: str

    @property
    def is_blob(self) -> bool:
        """Whether the request was for bytes of a blob."""
        return self.method == "GET" and "/blobs/sha256:" in self.path


class Registry:
    """A registry with its storage in `folder`. It may be stopped and started again at the same address."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", storage: Path | None = None) -> None:
        """`storage`: the storage of another registry, instead of one in `folder`."""
        with socket.create_server((host, 0)) as free:
            self.address = f"{host}:{free.getsockname()[1]}"
        self.storage = storage or folder / "storage"
        self._config, self._log = folder / "config.yml", folder / "access.log"
        folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(CONFIG.format(root=self.storage, address=self.address))
        self._process: subprocess.Popen[bytes] | None = None
        self._marks = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; returns when it answers."""
        with self._log.open("ab") as log:
            command = ["docker-registry", "serve", str(self._config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._ask("start")
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError(f"docker-registry did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop it; returns when the process has ended."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _ask(self, agent: str) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/v2/", headers={"User-Agent": agent})
            connection.getresponse().read()
        finally:
            connection.close()

    def requests(self) -> list[Request]:
        """All requests answered since the first start, in the order in which the responses ended."""
        self._marks += 1
        mark = f"mark-{self._marks}"
        self._ask(mark)
        end = time.monotonic() + PATIENCE_S
        while f'"{mark}"' not in (text := self._log.read_text(errors="replace")):
            if time.monotonic() > end:
                raise RuntimeError(f"{self._log} holds no line of the request just made")
            time.sleep(0.01)
        found = []
        for line in text.splitlines():
            match = LINE.match(line)
            if match and not match["agent"].startswith(("mark-", "start")):
                found.append(Request(match["method"], match["path"], int(match["status"]), int(match["size"]), match["agent"]))
        return found

    def blob_requests(self, since: int = 0, digest: str = "") -> list[Request]:
        """The requests for bytes of a blob, or of any; `since` is a count of earlier `requests()` to leave out."""
        return [request for request in self.requests()[since:] if request.is_blob and request.path.endswith(digest)]

    def push(self, source: str, name: str) -> str:
        """Copy an image in skopeo's notation to this registry, keeping digests. Returns its name there."""
        reference = f"docker://{self.address}/{name}"
        command = [
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            source,
            reference,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        return reference
