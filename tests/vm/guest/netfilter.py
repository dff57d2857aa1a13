# SPDX-License-Identifier: Apache-2.0
"""Speaks nftables over netlink, so that tests need no `nft`: a table with a chain and a rule, made and removed.

Numbers: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h (6.1).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE = 0, 1, 2
_NEW_CHAIN, _GET_CHAIN = 3, 4
_NEW_RULE, _GET_RULE = 6, 7
_REQUEST, _ACK, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x400
_ERROR, _DONE = 2, 3
_FAMILY_IPV4 = 2
LOCAL_OUT = 3


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _expression(name: str, *data: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *data))


@dataclass(frozen=True)
class _Message:
    kind: int
    flags: int
    body: bytes


class Netfilter:
    """One netlink socket.  Raises OSError with what the kernel answers."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.settimeout(20)
        self._socket.bind((0, 0))

    def close(self) -> None:
        self._socket.close()

    def add_counter(self, table: str, chain: str, protocol: int) -> None:
        """A table, a base chain on LOCAL_OUT, and a rule that counts the packets of one IP protocol."""
        hook = _nested(4, _number(1, LOCAL_OUT), _number(2, 0))
        expressions = (
            # payload load 1 byte at network header + 9 (protocol) to register 1; compare; count
            _expression("payload", _number(1, 1), _number(2, 1), _number(3, 9), _number(4, 1)),
            _expression("cmp", _number(1, 1), _number(2, 0), _nested(3, _attribute(1, bytes([protocol])))),
            _expression("counter"),
        )
        self._batch(
            [
                _Message(_NEW_TABLE, _CREATE, _text(1, table)),
                _Message(_NEW_CHAIN, _CREATE, _text(1, table) + _text(3, chain) + hook + _text(7, "filter")),
                _Message(_NEW_RULE, _CREATE, _text(1, table) + _text(2, chain) + _nested(4, *expressions)),
            ]
        )

    def delete(self, table: str) -> None:
        """The table with all that is in it."""
        self._batch([_Message(_DELETE_TABLE, 0, _text(1, table))])

    def dump_rules(self) -> bytes:
        """All rules as the kernel sends them."""
        self._socket.send(self._message(_SUBSYSTEM << 8 | _GET_RULE, _DUMP, _FAMILY_IPV4, 0, b""))
        found = b""
        while True:
            data = self._socket.recv(65536)
            for kind, body in _messages(data):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    _raise(body)
                found += body

    def _batch(self, messages: Sequence[_Message]) -> None:
        data = self._message(_BATCH_BEGIN, 0, 0, _SUBSYSTEM, b"")
        for message in messages:
            kind = _SUBSYSTEM << 8 | message.kind
            data += self._message(kind, message.flags | _ACK, _FAMILY_IPV4, 0, message.body)
        data += self._message(_BATCH_END, 0, 0, _SUBSYSTEM, b"")
        self._socket.send(data)
        answered = 0
        while answered < len(messages):
            for kind, body in _messages(self._socket.recv(65536)):
                if kind == _ERROR:
                    _raise(body)
                    answered += 1

    @staticmethod
    def _message(kind: int, flags: int, family: int, resource: int, body: bytes) -> bytes:
        content = struct.pack(">BBH", family, 0, resource) + body
        return struct.pack("<IHHII", 16 + len(content), kind, _REQUEST | flags, 1, 0) + content


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= 16:
        length, kind = struct.unpack_from("<IH", data)
        found.append((kind, data[16:length]))
        data = data[(length + 3) & ~3 :]
    return found


def _raise(body: bytes) -> None:
    (code,) = struct.unpack_from("<i", body)
    if code:
        raise OSError(-code, "netlink refused")
