"""A keep-alive connection for byte ranges: plain TCP, read straight into the reader's buffer, or TLS.

httpx takes 1.9 ms of CPU for a request and copies every byte several times, and a start of a container makes hundreds of
requests. This connection only does a GET, its head, and its body with a Content-Length. Unusual responses are handled elsewhere
(odd_head.py, decoded.py).
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable

import trio

from lazyfs.errors import BadAnswer, SourceError, Unreachable
from lazyfs.registry.head import END, MAX_HEAD, Head, parse_head
from lazyfs.registry.odd_head import end_of_head, read_odd_head
from lazyfs.registry.proxy import Proxy
from lazyfs.registry.url import Url

_CONNECT_TIMEOUT = 10.0
_READ_SIZE = 16 << 10
_TLS_RECORD = 16 << 10
"""OpenSSL never returns more at once, but allocates as much as it is asked for."""


class Connection:
    """Used by one reader at a time; in between, it is in the pool."""

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[trio.abc.Stream], socket: trio.socket.SocketType, name: str
    ) -> None:
        self._stream = stream
        self._socket = socket
        self._name = name
        self._spare = b""
        self._poll = select.poll()
        self._poll.register(socket.fileno(), select.POLLIN)
        self.used = False
        """It has carried a request before."""
        self.forward_proxy: Proxy | None = None
        """The proxy for plain http, which gets the whole URL instead of the path."""

    @property
    def idle(self) -> bool:
        """Whether nothing has arrived since the last body: neither the end of the connection nor unexpected bytes."""
        return not self._spare and not self._poll.poll(0)

    async def exchange(self, request: bytes) -> Head:
        """Send `request`, and return the head of the response. The body is read with `receive_into`.

        Raises Unreachable, BadAnswer. Cancelled or failed: only `close` may follow.
        """
        try:
            await self._stream.send_all(request)
            if isinstance(self._stream, trio.SocketStream):
                # The response cannot be there yet, so trying to read first would waste a system call.
                await trio.lowlevel.wait_readable(self._socket)
            while True:
                head = await self._receive_head()
                if head.status >= 200:
                    self.used = True
                    return head
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._broken(error) from error

    async def receive_into(self, view: memoryview) -> int:
        """Wait for bytes of the body, at most as many as `view` holds. Returns their number, 0 at the end."""
        if self._spare:
            count = min(len(view), len(self._spare))
            view[:count] = self._spare[:count]
            self._spare = self._spare[count:]
            return count
        try:
            if isinstance(self._stream, trio.SocketStream):
                return await self._socket.recv_into(view)
            data = await self._stream.receive_some(min(len(view), _TLS_RECORD))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._broken(error) from error
        view[: len(data)] = data
        return len(data)

    async def tunnel(self, url: Url, proxy: Proxy) -> None:
        """Ask `proxy`, to which this connection leads, for a tunnel to `url`'s host. Raises as `exchange`."""
        request = f"CONNECT {url.address} HTTP/1.1\r\nHost: {url.address}\r\n"
        if proxy.authorization:
            request += f"Proxy-Authorization: {proxy.authorization}\r\n"
        head = await self.exchange(request.encode("ascii") + b"\r\n")
        if head.status != 200 or self._spare:
            raise BadAnswer(f"the proxy {proxy.url.authority} refuses a connection to {url.address}: it answers {head.status}")

    def close(self) -> None:
        """Close without a TLS goodbye, which would tell the peer nothing that TCP does not."""
        self._socket.close()

    async def _receive_head(self) -> Head:
        data = bytearray(self._spare)
        searched = 0
        while (end := data.find(END, searched)) < 0 and not end_of_head(data, searched):
            searched = max(0, len(data) - len(END))
            if len(data) > MAX_HEAD:
                raise BadAnswer(f"{self._name} sends headers of over {MAX_HEAD} bytes")
            more = await self._stream.receive_some(_READ_SIZE)
            if not more:
                raise Unreachable(f"{self._name} closed the connection before it answered")
            data += more
        try:
            head = parse_head(bytes(data[: max(0, end)]))
        except BadAnswer as refusal:
            end = end_of_head(data)  # perhaps before what was found, which may be in the body
            self._spare = bytes(data[end:])
            return read_odd_head(bytes(data[:end]), refusal)
        self._spare = bytes(data[end + len(END) :])
        return head

    def _broken(self, error: BaseException) -> SourceError:
        return Unreachable(f"the connection to {self._name} broke off: {error.__cause__ or error}")


async def connect(url: Url, proxy: Proxy | None, tls: Callable[[], ssl.SSLContext]) -> Connection:
    """Open a connection to `url`'s host, through `proxy` if given.

    Raises Unreachable, and BadAnswer for permanent failures: a certificate that does not verify, a proxy that refuses.
    Cancelled: nothing stays open.
    """
    near = proxy.url if proxy else url
    name = f"{url.authority} (through the proxy {near.authority})" if proxy else url.authority
    try:
        with trio.fail_after(_CONNECT_TIMEOUT):
            tcp = await trio.open_tcp_stream(near.host, near.port)
    except trio.TooSlowError:
        raise Unreachable(f"no connection to {name} within {_CONNECT_TIMEOUT:g} s") from None
    except OSError as error:
        raise Unreachable(f"cannot connect to {name}: {error}") from error
    try:
        with trio.fail_after(_CONNECT_TIMEOUT):
            stream: trio.SocketStream | trio.SSLStream[trio.abc.Stream] = tcp
            if proxy and near.scheme == "https":
                stream = await _handshake(stream, near.host, tls())
            if proxy and url.scheme == "https":
                await Connection(stream, tcp.socket, name).tunnel(url, proxy)
            if url.scheme == "https":
                stream = await _handshake(stream, url.host, tls())
            connection = Connection(stream, tcp.socket, name)
            connection.forward_proxy = proxy if url.scheme == "http" else None
            return connection
    except trio.TooSlowError:
        tcp.socket.close()
        raise Unreachable(f"{name} did not complete the connection within {_CONNECT_TIMEOUT:g} s") from None
    except BaseException:
        tcp.socket.close()
        raise


async def _handshake(stream: trio.abc.Stream, host: str, context: ssl.SSLContext) -> trio.SSLStream[trio.abc.Stream]:
    secured = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await secured.do_handshake()
    except (OSError, trio.BrokenResourceError) as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise BadAnswer(
                f"the certificate of {host} does not verify: {error.__cause__.verify_message}",
                hint="If the registry has a CA of its own, add it to the system's or name it in SSL_CERT_FILE",
            ) from error
        raise Unreachable(f"no TLS connection to {host}: {error.__cause__ or error}") from error
    return secured
