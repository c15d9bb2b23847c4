"""Where a server listens, how it runs and how it stops."""

import asyncio
import errno
import ipaddress
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from hfscale.process import InputError
from hfscale.serving.app import Server
from hfscale.serving.engine import Piece, Text, hand_out_at_once
from hfscale.serving.served_model import ServedModel

# That a thread has Python to itself: at the default of 0.005 s the engine, which needs it for a
# moment between two operations, waits for the connections' thread.
SECONDS_OF_A_THREAD = 0.0005
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
WHY_NOT_BOUND = {
    errno.EADDRINUSE: "--port {port}: in use on {host}; name another, or 0 for any that is free",
    errno.EACCES: "--port {port}: not allowed to this user; name one above 1023",
    errno.EADDRNOTAVAIL: "--host {host}: no address of this machine; 0.0.0.0 is all of them",
}


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody else gets, and on which nobody is answered yet.

    Raises InputError: the port is in use or not allowed, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host}: no such address; 127.0.0.1 is this machine's") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _saying_why(listener, host, port):
        listener.bind(address)
    return listener


def listen(listener: socket.socket) -> None:
    """Let clients come. Raises InputError: another server listens on the port meanwhile."""
    host, port = listener.getsockname()[:2]
    with _saying_why(listener, host, port):
        listener.listen(128)


@contextmanager
def _saying_why(listener: socket.socket, host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        listener.close()
        why = WHY_NOT_BOUND.get(error.errno or 0, f"--host {{host}}: {error.strerror}")
        raise InputError(why.format(host=host, port=port)) from None


def url_of(listener: socket.socket) -> str:
    """The address by which clients on this machine call it."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_open(listener: socket.socket) -> bool:
    """Whether other machines can call it."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def serve(server: Server, listener: socket.socket, *, seconds_to_stop: float) -> None:
    """Answer until a signal comes. Then nothing new is taken, and what is being written has some
    seconds to come to its end.
    """
    sys.setswitchinterval(SECONDS_OF_A_THREAD)
    asyncio.run(serving(server, listener, seconds_to_stop=seconds_to_stop))


async def serving(
    server: Server,
    listener: socket.socket,
    *,
    seconds_to_stop: float,
    on_start: Any = None,
) -> None:
    """As `serve`, in a loop that runs; `on_start` gets uvicorn's server."""
    loop = asyncio.get_running_loop()

    def hand_out(pieces: list[tuple[Text, Piece]]) -> None:
        loop.call_soon_threadsafe(hand_out_at_once, pieces)

    models = list(server.models.values())
    config = uvicorn.Config(
        server.app(),
        # Upstream's would close the handlers of all other libraries; absl's closes its stream, too.
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    http = _StoppingServer(config, server, seconds_to_stop)
    if on_start:
        on_start(http)
    with _writing(models, hand_out):
        listen(listener)
        await http.serve(sockets=[listener])


class _StoppingServer(uvicorn.Server):
    """Tells the texts that are too long when they have to end."""

    def __init__(self, config: uvicorn.Config, server: Server, seconds_to_stop: float):
        super().__init__(config)
        self.answering = server
        self.seconds_to_stop = seconds_to_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, and wait for the answers, which end early after some seconds."""
        self.answering.is_stopping = True
        loop = asyncio.get_running_loop()
        end = loop.call_later(self.seconds_to_stop, _stop_all, self.answering.models.values())
        await super().shutdown(sockets)
        end.cancel()


def _stop_all(models: Any) -> None:
    for served in models:
        served.engine.stop()
        served.turns.end()


@contextmanager
def _writing(models: Sequence[ServedModel], hand_out: Any) -> Iterator[None]:
    """The engines write as long as this lasts."""
    for served in models:
        served.engine.start(hand_out)
    try:
        yield
    finally:
        _stop_all(models)
