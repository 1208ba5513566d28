"""HTTP to one server, from any number of threads: kept connections, a limit in time, and what is tried again."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult

from echoir.runtime.errors import BackendError, ClosedSessionError

FULL = 503  # Triton's own answer when a queue is full, and that of a proxy with no server behind it
BLOCK = 1 << 16  # bytes read at a time


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswerError(Exception):
    """There is no whole answer, and why."""


class Connection:
    """Asks one server.

    Args:
        url: scheme, host and port; its path goes before every path.
        timeout: seconds that one answer may take, from the request's first byte to the answer's last.
        patience: seconds during which a request that the server was too busy for is sent again, and one that does not
            reach a server that was reached before. Nothing else is: what fails once will fail twice.
    """

    def __init__(self, url: SplitResult, timeout: float, patience: float) -> None:
        self.url, self.timeout, self.patience = url, timeout, patience
        self.place = f"{url.scheme}://{url.netloc}"
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = self._reached = False

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, *, most: int
    ) -> Answer:
        """GET, or POST with a body.

        Args:
            most: bytes of the longest answer that makes sense; a longer one is cut there, plus one byte.

        Raises:
            BackendError: no whole answer within the limits.
            ClosedSessionError: the connection is closed.
        """
        began = time.monotonic()
        pause = 0.05
        while True:
            try:
                answer = self._ask(path, body, headers or {}, most)
                if answer.status != FULL:
                    return answer
                cause = "the server is too busy, or not ready (503)"
            except _UnreachedError as error:
                if not self._reached:
                    raise BackendError(f"{self.place}{path}: {error}; is it running, and the address right?") from error
                cause = str(error)
            except NoAnswerError as error:
                raise BackendError(f"{self.place}{path}: {error}") from error
            waited = time.monotonic() - began
            if waited + pause > self.patience:
                raise BackendError(f"{self.place}{path}: {cause}; gave up after {waited:.1f} s")
            time.sleep(pause * random.uniform(0.5, 1))  # so that clients that were refused together come back apart
            pause = min(2 * pause, 2)

    def close(self) -> None:
        """Close what is idle; nothing can be asked afterwards."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask(self, path: str, body: bytes | None, headers: Mapping[str, str], most: int) -> Answer:
        connection, kept = self._take()
        try:
            with self._limit(connection) as late:
                try:
                    response = self._send(connection, path, body, headers)
                except ConnectionError:
                    if not kept or late.is_set():
                        raise
                    # A server may close what is idle, just as it is used again.
                    connection.close()
                    response = self._send(connection, path, body, headers)
                data = bytearray()
                while len(data) <= most and (block := response.read1(min(BLOCK, most + 1 - len(data)))):
                    data += block
        except _LateError:
            connection.close()
            raise NoAnswerError(f"no whole answer within {self.timeout:g} s") from None
        except http.client.RemoteDisconnected:
            connection.close()
            raise NoAnswerError("the server closed the connection without an answer") from None
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise NoAnswerError(f"the answer was cut or is not HTTP ({error!r})") from error
        except BaseException:
            connection.close()
            raise
        response.close()
        if response.length and len(data) <= most:
            connection.close()
            raise NoAnswerError(f"the answer was cut after {len(data)} of {len(data) + response.length} bytes")
        if len(data) > most or response.will_close:
            connection.close()
        else:
            self._keep(connection)
        return Answer(response.status, dict(response.headers.items()), bytes(data))

    def _send(
        self, connection: http.client.HTTPConnection, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            self._connect(connection)
        connection.request("GET" if body is None else "POST", self.url.path + path, body, dict(headers))
        return connection.getresponse()

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except OSError as error:
            raise _UnreachedError(f"the server cannot be reached ({error})") from error
        self._reached = True
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @contextmanager
    def _limit(self, connection: http.client.HTTPConnection) -> Iterator[threading.Event]:
        """A limit for everything together: a socket's own starts anew with every byte that drips in."""
        late = threading.Event()

        def cut() -> None:
            late.set()
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.timeout, cut)
        timer.daemon = True
        timer.start()
        try:
            yield late
        except (http.client.HTTPException, OSError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise _LateError from error
            raise
        finally:
            timer.cancel()
        if late.is_set():  # an answer without a length ends where it is cut
            raise _LateError

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._closed:
                raise ClosedSessionError
            if self._idle:
                return self._idle.pop(), True
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        return kind(self.url.hostname or "", self.url.port, timeout=self.timeout), False

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


class _UnreachedError(NoAnswerError):
    """No connection, so the request is nowhere."""


class _LateError(Exception):
    """The limit in time passed."""
