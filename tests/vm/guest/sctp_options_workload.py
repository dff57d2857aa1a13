# SPDX-License-Identifier: Apache-2.0
"""SCTP as `sctp_workload` does not use it: several addresses, keys, schedulers, unread messages, refused connections.

Constants and layouts: include/uapi/linux/sctp.h (6.1).
"""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress
from pathlib import Path

SOL_SCTP = 132
INITMSG, AUTH_CHUNK, AUTH_KEY, AUTH_ACTIVE_KEY, BINDX_ADD, PEELOFF = 2, 21, 23, 24, 100, 102
STREAM_SCHEDULER, STREAM_SCHEDULER_VALUE = 123, 124
SNDINFO = 2
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
IPV6 = "::1"
MESSAGES = 30


def run(seed: int) -> None:
    """One round; what the kernel refuses is passed over."""
    for name in ("auth_enable", "addip_enable"):
        Path(f"/proc/sys/net/sctp/{name}").write_text("1")
    numbers = random.Random(seed)
    _over_ipv6(numbers)
    with _socket(socket.SOCK_STREAM, numbers) as listener, _socket(socket.SOCK_SEQPACKET, numbers) as many:
        listener.bind((ADDRESSES[0], 0))
        port = listener.getsockname()[1]
        _more_addresses(listener, ADDRESSES[1 : numbers.randint(1, 4)], port)
        listener.listen(4)
        clients = []
        for _ in range(numbers.randint(2, 5)):
            client = _socket(socket.SOCK_STREAM, numbers)
            clients.append(client)
            client.bind((ADDRESSES[0], 0))
            _more_addresses(client, ADDRESSES[1 : numbers.randint(1, 4)], client.getsockname()[1])
            client.connect((numbers.choice(ADDRESSES[:1]), port))
        ends = [listener.accept()[0] for _ in clients]
        for client, end in zip(clients, ends, strict=True):
            _converse(client, end, numbers)
        many.bind((ADDRESSES[3], 0))
        many.listen(4)
        with _socket(socket.SOCK_SEQPACKET, numbers) as other:
            for number in range(4):
                _send(other, numbers.randbytes(200 + number), 0, many.getsockname())
            many.recv(4096)
        with _socket(socket.SOCK_STREAM, numbers) as refused, suppress(OSError):
            refused.connect((ADDRESSES[0], 9))
        for end in (*ends, *clients):
            end.close()


def _over_ipv6(numbers: random.Random) -> None:
    """One association of sockets that take both families, and addresses of both."""
    family = socket.AF_INET6
    with (
        _socket(socket.SOCK_STREAM, numbers, family) as listener,
        _socket(socket.SOCK_SEQPACKET, numbers, family) as client,
    ):
        listener.bind(("::", 0))
        listener.listen(4)
        address = (IPV6, listener.getsockname()[1])
        for number in range(numbers.randint(2, 12)):
            _send(client, numbers.randbytes(numbers.choice((10, 300, 2000))), 0, address)
            if number == 0:
                end, _ = listener.accept()
        end.recv(4096)
        end.close()


def _socket(
    kind: socket.SocketKind, numbers: random.Random, family: socket.AddressFamily = socket.AF_INET
) -> socket.socket:
    end = socket.socket(family, kind, socket.IPPROTO_SCTP)
    end.settimeout(10.0)
    streams = numbers.choice((1, 2, 8, 40))
    end.setsockopt(SOL_SCTP, INITMSG, struct.pack("=HHHH", streams, streams, 3, 0))
    with suppress(OSError):
        for chunk in (0, 3):  # DATA, SACK are sent with a signature
            if numbers.random() < 0.5:
                end.setsockopt(SOL_SCTP, AUTH_CHUNK, bytes((chunk,)))
        for number in range(numbers.randint(0, 3)):
            secret = numbers.randbytes(numbers.choice((8, 16, 32, 60)))
            end.setsockopt(SOL_SCTP, AUTH_KEY, struct.pack("=iHH", 0, number, len(secret)) + secret)
    return end


def _more_addresses(end: socket.socket, addresses: tuple[str, ...], port: int) -> None:
    for address in addresses:
        packed = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(address))
        with suppress(OSError):
            end.setsockopt(SOL_SCTP, BINDX_ADD, packed)


def _converse(client: socket.socket, end: socket.socket, numbers: random.Random) -> None:
    """Messages over some streams; the last ones stay unread."""
    with suppress(OSError):
        client.setsockopt(SOL_SCTP, STREAM_SCHEDULER, struct.pack("=iI", 0, numbers.randrange(3)))
        client.setsockopt(SOL_SCTP, STREAM_SCHEDULER_VALUE, struct.pack("=iHH", 0, 0, numbers.randrange(9)))
    for number in range(MESSAGES):
        with suppress(OSError):
            size = numbers.choice((1, 20, 100, 600, 1400, 5000))
            _send(client, numbers.randbytes(size), number % numbers.choice((1, 2, 8)), None)
    for _ in range(MESSAGES // 2):
        end.recv(8192)
    if numbers.random() < 0.5:
        with suppress(OSError):
            _send(end, b"back", 0, None)
            client.recv(100)


def _send(end: socket.socket, data: bytes, stream: int, address: tuple[object, ...] | None) -> None:
    info = struct.pack("=HHIIi", stream, 0, 0, 0, 0)
    end.sendmsg([data], [(SOL_SCTP, SNDINFO, info)], 0, *([address] if address else []))
