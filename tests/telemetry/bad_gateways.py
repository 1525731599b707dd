"""Servers that answer a push in every way but the right one."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def server(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Listen, and treat every connection as told; `stop` is set at the end."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                thread = threading.Thread(target=serve, args=(connection,), daemon=True)
                thread.start()
                threads.append(thread)

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                answer(connection, stop)

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)
    for thread in (acceptor, *threads):
        thread.join(5)


def hear(connection: socket.socket, *, body: bool = False) -> bytes:
    """Read a whole request: hanging up on unread bytes would reset the connection. Return its head, or all."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, between, rest = data.partition(b"\r\n\r\n")
    length = int((re.findall(rb"(?i)content-length: (\d+)", head) or [b"0"])[0])
    while len(rest) < length:
        rest += connection.recv(65536)
    return head + between + rest if body else head


def mute(connection: socket.socket, stop: threading.Event) -> None:
    """Take the connection and never say a word."""
    stop.wait(30)


def endless(connection: socket.socket, stop: threading.Event) -> None:
    """Begin an answer and never end it, one byte after the other."""
    hear(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    while not stop.wait(0.05):
        connection.sendall(b"x")


def rubbish(connection: socket.socket, stop: threading.Event) -> None:
    """Answer in no language."""
    hear(connection)
    connection.sendall(b"\x00\xff" * 100 + b"\r\n\r\n")


def broken(connection: socket.socket, stop: threading.Event) -> None:
    """Hang up in the middle of the answer."""
    hear(connection)
    connection.sendall(b"HTTP/1.1 2")


def failing(connection: socket.socket, stop: threading.Event) -> None:
    """Answer that something is wrong here."""
    hear(connection)
    connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")


def lying(connection: socket.socket, stop: threading.Event) -> None:
    """Say that all is well, with a page, as a portal does."""
    hear(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")


def dripping(connection: socket.socket, stop: threading.Event) -> None:
    """Answer well, a byte a second."""
    hear(connection)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":
        if stop.wait(1):
            return
        connection.sendall(bytes([byte]))


def redirecting(connection: socket.socket, stop: threading.Event) -> None:
    """Send the caller to a page that is glad of every visitor."""
    if hear(connection).startswith(b"GET"):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    else:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n")
