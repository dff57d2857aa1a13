# SPDX-License-Identifier: Apache-2.0
"""Speaks nftables over netlink, so that tests need no `nft`: tables with chains, rules and sets, made,
listed and removed.

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
_NEW_SET, _GET_SET = 9, 10
_NEW_ELEMENT, _GET_ELEMENT = 12, 13
_REQUEST, _ACK, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x400
_ERROR, _DONE = 2, 3
FAMILY_INET, FAMILY_IPV4, FAMILY_IPV6 = 1, 2, 10
LOCAL_OUT = 3
BITMAP, INTERVALS, HASH = 0, 0x4, 0x10  # flags of a set that make the kernel choose this kind
_INTERVAL_END = 1
_TYPE_PORT = 13  # a number for user space only
_SET = "ports"


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


def _chain(table: str, chain: str) -> list[_Message]:
    """A table, and a base chain in it on LOCAL_OUT."""
    hook = _nested(4, _number(1, LOCAL_OUT), _number(2, 0))
    return [
        _Message(_NEW_TABLE, _CREATE, _text(1, table)),
        _Message(_NEW_CHAIN, _CREATE, _text(1, table) + _text(3, chain) + hook + _text(7, "filter")),
    ]


def _member(port: int, flags: bytes = b"") -> bytes:
    """One element of a set."""
    return _nested(1, _nested(1, _attribute(1, port.to_bytes(2, "big"))), flags)


def _rule(table: str, chain: str, expressions: Sequence[bytes]) -> _Message:
    return _Message(_NEW_RULE, _CREATE, _text(1, table) + _text(2, chain) + _nested(4, *expressions))


class Netfilter:
    """One netlink socket.  Raises OSError with what the kernel answers."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.settimeout(20)
        self._socket.bind((0, 0))

    def close(self) -> None:
        self._socket.close()

    def add_counter(self, table: str, chain: str, protocol: int, rules: int = 1) -> None:
        """A table, a base chain on LOCAL_OUT, and rules that each count the packets of one IP protocol."""
        expressions = (
            # payload load 1 byte at network header + 9 (protocol) to register 1; compare; count
            _expression("payload", _number(1, 1), _number(2, 1), _number(3, 9), _number(4, 1)),
            _expression("cmp", _number(1, 1), _number(2, 0), _nested(3, _attribute(1, bytes([protocol])))),
            _expression("counter"),
        )
        self._batch([*_chain(table, chain), *[_rule(table, chain, expressions)] * rules])

    def add_lookup(
        self, table: str, chain: str, ports: Sequence[int], kind: int = BITMAP, family: int = FAMILY_IPV4
    ) -> None:
        """A table with a set of ports, a base chain on LOCAL_OUT, and a rule that counts packets to these ports."""
        members = [_member(port) for port in ports]
        if (
            kind == INTERVALS
        ):  # each followed by the first port behind it: an interval must be closed before the next
            ends = [_member(port + 1, _number(3, _INTERVAL_END)) for port in ports]
            members = [member for pair in zip(members, ends, strict=True) for member in pair]
        key = _number(3, kind) + _number(4, _TYPE_PORT) + _number(5, 2)
        expressions = (
            # payload load 2 bytes at transport header + 2 (destination port) to register 1; look up; count
            _expression("payload", _number(1, 1), _number(2, 2), _number(3, 2), _number(4, 2)),
            _expression("lookup", _text(1, _SET), _number(2, 1)),
            _expression("counter"),
        )
        named = _text(1, table) + _text(2, _SET)
        self._batch(
            [
                *_chain(table, chain),
                _Message(_NEW_SET, _CREATE, named + key + _number(10, 1)),
                _Message(_NEW_ELEMENT, _CREATE, named + _nested(3, *members)),
                _rule(table, chain, expressions),
            ],
            family,
        )

    def delete(self, table: str, *, family: int = FAMILY_IPV4) -> None:
        """The table with all that is in it."""
        self._batch([_Message(_DELETE_TABLE, 0, _text(1, table))], family)

    def dump_rules(self) -> bytes:
        """All rules of IPv4 as the kernel sends them."""
        return self._dump(_GET_RULE, b"")

    def dump_all(self, table: str, *, family: int = FAMILY_IPV4) -> dict[str, bytes]:
        """Tables, chains, rules, sets, and the members of the set that :meth:`add_lookup` made."""
        kinds = {"tables": _GET_TABLE, "chains": _GET_CHAIN, "rules": _GET_RULE, "sets": _GET_SET}
        found = {name: self._dump(kind, b"", family) for name, kind in kinds.items()}
        which = _text(1, table) + _text(2, _SET)
        return found | {"elements": self._dump(_GET_ELEMENT, which, family)}

    def _dump(self, kind: int, body: bytes, family: int = FAMILY_IPV4) -> bytes:
        self._socket.send(self._message(_SUBSYSTEM << 8 | kind, _DUMP, family, 0, body))
        found = b""
        while True:
            data = self._socket.recv(65536)
            for answered, content in _messages(data):
                if answered == _DONE:
                    return found
                if answered == _ERROR:
                    _raise(content)
                found += content

    def _batch(self, messages: Sequence[_Message], family: int = FAMILY_IPV4) -> None:
        data = self._message(_BATCH_BEGIN, 0, 0, _SUBSYSTEM, b"")
        for message in messages:
            kind = _SUBSYSTEM << 8 | message.kind
            data += self._message(kind, message.flags | _ACK, family, 0, message.body)
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
