"""A TCP proxy for a Postgres on a unix socket. It injects network faults.

It can drop bytes, delay them, cut connections, and send a message byte by byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from psycopg2.extensions import make_dsn, parse_dsn

T = TypeVar("T")
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""The message that psycopg2 sends at the end of a transaction."""
WRITES = (b"insert into codelupe.", b"update codelupe.", b"INSERT INTO codelupe.", b"UPDATE codelupe.")
RESET = struct.pack("ii", 1, 0)
"""The SO_LINGER value with which closing sends RST."""

After = Literal["reset", "hole"]


class Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, black: bool) -> None:
        self.client, self.server = client, server
        self.black = black
        """Whether all bytes are dropped in both directions. This is final: the missing bytes cannot be restored."""
        self.wrote = False
        """Whether the transaction has written."""
        self.losing: After | None = None
        """What happens after the server's next answer is lost."""

    def reset(self, *, server_too: bool = True) -> None:
        self.black = self.black or not server_too
        if not self.client.is_closing():
            self.client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.client.transport.abort()
        if server_too:
            self.server.transport.abort()

    def end(self) -> None:
        """Close the link after one side has closed. A black hole hides this from the server."""
        self.client.close()
        if not self.black:
            self.server.close()


class Proxy:
    """Listens on its own port, in its own thread, until it is closed."""

    def __init__(self, url: str) -> None:
        parts = parse_dsn(url)
        self._socket = f"{parts['host']}/.s.PGSQL.{parts['port']}"
        self._links: set[Link] = set()
        self._new_ones_black = self._slices = False
        self._delay_seconds = 0.0
        self._lose: tuple[bytes, int, After] | None = None
        self._writes = WRITES
        self.lost = threading.Event()
        """Set when the answer has been lost."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def url(self, url: str) -> str:
        """Return a database's URL through the proxy."""
        return str(make_dsn(url, host="127.0.0.1", port=self.port))

    # --- faults; any thread may call these ------------------------------------------------------------------

    def heal(self) -> None:
        """Stop all faults. Connections in a black hole stay there."""

        def change() -> None:
            self._new_ones_black = self._slices = False
            self._delay_seconds, self._lose = 0.0, None

        self._now(change)

    def reset(self, *, server_too: bool = True) -> None:
        """Cut every connection, on the server's side only with `server_too`."""
        self._now(lambda: [link.reset(server_too=server_too) for link in self._links])

    def black_hole(self, *, new_ones: bool) -> None:
        """Drop every byte of the existing connections and, with `new_ones`, of new ones until `heal`."""

        def change() -> None:
            self._new_ones_black = new_ones
            for link in self._links:
                link.black = True

        self._now(change)

    def delay(self, seconds: float) -> None:
        """Delay the server's answers by this time."""
        self._delay_seconds = seconds

    def slices(self) -> None:
        """Send each byte as its own packet."""
        self._slices = True

    def lose_answer(
        self, after: After, *, number: int = 1, to: bytes = COMMIT, writes: tuple[bytes, ...] = WRITES
    ) -> None:
        """Let the number-th message `to` through, and lose its answer. Only COMMITs after `writes` count."""

        def change() -> None:
            self.lost.clear()
            self._lose, self._writes = (to, number, after), writes

        self._now(change)

    def close(self) -> None:
        def end() -> None:
            self._server.close()
            for link in list(self._links):
                link.reset()

        self._now(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _now(self, change: Callable[[], T]) -> T:
        async def call() -> T:
            return change()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    # --- a connection ---------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_unix_connection(self._socket)
        except OSError:  # without a server, the client gets no connection either
            client.transport.abort()
            return
        link = Link(client, server, self._new_ones_black)
        self._links.add(link)
        up, down = self._pump(link, reader, server, up=True), self._pump(link, from_server, client, up=False)
        await asyncio.gather(up, down)
        if not link.black:
            self._links.discard(link)

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Forward the bytes of one direction."""
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(link, pending, writer))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if up:
                    self._look(link, data)
                elif link.losing is not None:
                    if link.losing == "reset":
                        link.reset()
                    link.black = link.black or link.losing == "hole"
                    self.lost.set()
                    continue
                if not link.black:
                    pending.put_nowait((time.monotonic() + (0.0 if up else self._delay_seconds), data))
        while pending.qsize() and not link.black:
            await asyncio.sleep(0.01)
        sending.cancel()
        link.end()

    async def _send(
        self, link: Link, pending: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                due, data = await pending.get()
                while not link.black and (left := min(due - time.monotonic(), self._delay_seconds)) > 0:
                    await asyncio.sleep(left)
                step = 1 if self._slices else len(data)
                for start in range(0, len(data), step):
                    if not link.black:
                        writer.write(data[start : start + step])
                        await writer.drain()
                        await asyncio.sleep(0)

    def _look(self, link: Link, data: bytes) -> None:
        link.wrote = link.wrote or any(write in data for write in self._writes)
        wrote = link.wrote
        if data.endswith(COMMIT):
            link.wrote = False
        if self._lose is None:
            return
        to, number, after = self._lose
        if to in data and (wrote or to != COMMIT):
            self._lose = (to, number - 1, after) if number > 1 else None
            if number <= 1:
                link.losing = after
