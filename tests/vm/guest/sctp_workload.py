# SPDX-License-Identifier: Apache-2.0
"""SCTP traffic over loopback that a healthy kernel carries without one lost or damaged byte.

``run()`` opens one-to-one and one-to-many associations over IPv4 and IPv6. In each, messages of many sizes
(fragmented ones too) go over several streams, some unordered, and come back; every one has its checksum,
stream and order verified at both ends. Half of the associations end by graceful shutdown, half by abort,
and the other end must see which. Then the kernel must have forgotten all of them.

As a script it prints the summary as JSON and exits 0 only if all was well::

    sctp_workload.py [--associations 3] [--messages 20] [--streams 5] [--limit 60] [--seed 1]

Constants and layouts: include/uapi/linux/sctp.h (6.1).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

SOL_SCTP = 132
OPTION_INITMSG, OPTION_NODELAY, OPTION_EVENTS, OPTION_RECVRCVINFO = 2, 3, 11, 32
CMSG_SNDINFO, CMSG_RCVINFO = 2, 3
FLAG_UNORDERED, FLAG_ABORT, FLAG_EOF = 0x1, 0x4, 0x200
MSG_NOTIFICATION = 0x8000
ASSOC_CHANGE, COMM_UP, COMM_LOST, SHUTDOWN_COMP = 0x8001, 0, 1, 3
LINGER_ABORT = struct.pack("ii", 1, 0)

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
SIZES = (17, 64, 300, 1400, 1500, 9000)
LARGE_SIZES = (66_000, 100_000)
"""Payload bytes. The large ones exceed loopback's MTU and are fragmented; one in LARGE_EVERY is large."""
LARGE_EVERY = 16
BATCH = 6
PAUSE = 1.0
"""Seconds between two rounds of steady traffic, in which others come to run under emulation."""
HEADER = struct.Struct("=IIHHI")
"""CRC-32 of all that follows, sequence number in the stream, stream, unordered or not, length of the body."""


@dataclass
class Summary:
    """What was carried. ``messages`` and ``bytes`` count what arrived intact, at either end."""

    associations: int = 0
    messages: int = 0
    bytes: int = 0
    shutdowns: int = 0
    aborts: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.errors


class Damaged(Exception):
    """A message or the end of an association was not as it should be."""


@dataclass(frozen=True)
class Message:
    data: bytes
    stream: int
    association: int
    address: tuple[object, ...] | None


class _Receiver:
    """Takes whole messages off a socket and verifies each; one for each end of an association."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._expected: Counter[tuple[int, int]] = Counter()
        self.messages = 0
        self.bytes = 0
        self.changes: Counter[int] = Counter()
        """Association changes that a one-to-many socket was told of, by state."""

    def receive(self) -> Message | None:
        """The next message; None at the end of a one-to-one association, or after a notification."""
        parts = []
        while True:
            data, ancillary, flags, address = self._end.recvmsg(1 << 18, 256)
            if flags & MSG_NOTIFICATION:
                kind, _, _, state = struct.unpack_from("=HHIH", data)
                if kind == ASSOC_CHANGE:
                    self.changes[state] += 1
                return None
            if not data:
                return None
            parts.append(data)
            if flags & socket.MSG_EOR:
                break
        stream, association = -1, 0
        for level, kind, content in ancillary:
            if (level, kind) == (SOL_SCTP, CMSG_RCVINFO):
                stream, _, _, _, _, _, _, association = struct.unpack_from("=HHHxxIIIIi", content)
        message = Message(b"".join(parts), stream, association, address or None)
        self._verify(message)
        return message

    def _verify(self, message: Message) -> None:
        checksum, sequence, stream, unordered, length = HEADER.unpack_from(message.data)
        if checksum != zlib.crc32(message.data[4:]) or len(message.data) != HEADER.size + length:
            raise Damaged(f"message of {len(message.data)} bytes on stream {stream} is damaged")
        if stream != message.stream:
            raise Damaged(f"message for stream {stream} came on stream {message.stream}")
        if not unordered:
            key = (message.association, stream)
            if sequence != self._expected[key]:
                raise Damaged(f"stream {stream}: message {sequence} came, {self._expected[key]} was due")
            self._expected[key] += 1
        self.messages += 1
        self.bytes += len(message.data)


class _Workload:
    def __init__(self, associations: int, messages: int, streams: int, limit: float, seed: int) -> None:
        self.associations = associations
        self.messages = messages
        self.streams = streams
        self.deadline = time.monotonic() + limit
        self.random = random.Random(seed)
        self.summary = Summary()

    def remaining(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time limit is over")
        return left

    def open(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        end = socket.socket(family, kind, socket.IPPROTO_SCTP)
        end.settimeout(self.remaining())
        end.setsockopt(SOL_SCTP, OPTION_INITMSG, struct.pack("=HHHH", self.streams, self.streams, 0, 0))
        self.prepare(end)
        return end

    def prepare(self, end: socket.socket) -> None:
        """Options that accept() does not hand on in every kernel."""
        end.settimeout(self.remaining())
        end.setsockopt(SOL_SCTP, OPTION_NODELAY, 1)
        end.setsockopt(SOL_SCTP, OPTION_RECVRCVINFO, 1)

    def converse(
        self,
        send: Callable[[bytes, int, int], None],
        receiver: _Receiver,
        sequence: Counter[int] | None = None,
    ) -> None:
        """Send batches of messages, and get every batch back before the next.  ``sequence``: the next number of each
        stream, for an association that goes on afterwards."""
        sequence = Counter() if sequence is None else sequence
        left = self.messages
        while left:
            self.remaining()
            batch = min(BATCH, left)
            sent = Counter[bytes]()
            for _ in range(batch):
                stream = self.random.randrange(self.streams)
                unordered = self.random.random() < 0.2
                sizes = LARGE_SIZES if left % LARGE_EVERY == 1 else SIZES
                left -= 1
                body = self.random.randbytes(self.random.choice(sizes))
                number = 0 if unordered else sequence[stream]
                sequence[stream] += not unordered
                rest = HEADER.pack(0, number, stream, unordered, len(body))[4:] + body
                data = struct.pack("=I", zlib.crc32(rest)) + rest
                send(data, stream, FLAG_UNORDERED if unordered else 0)
                sent[data] += 1
            while sent:
                message = receiver.receive()
                if message is None:
                    raise Damaged("the association ended early")
                if not sent[message.data]:
                    raise Damaged("a message came back that was not sent")
                sent[message.data] -= 1
                sent += Counter()  # drops what is zero

    def count(self, receiver: _Receiver) -> None:
        self.summary.messages += receiver.messages
        self.summary.bytes += receiver.bytes

    # One-to-one: a listening socket, each association accepted as a socket of its own.

    def one_to_one(self, family: socket.AddressFamily) -> None:
        with self.open(family, socket.SOCK_STREAM) as listener:
            listener.bind((LOOPBACK[family], 0))
            listener.listen(8)
            for number in range(self.associations):
                aborts = number % 2 == 1
                client, end = self.connected(listener)
                with _Thread(partial(self.serve_one, end, aborts)), client:
                    receiver = _Receiver(client)
                    self.converse(partial(_send, client), receiver)
                    if aborts:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ABORT)
                self.count(receiver)
                self.ended(aborts)

    # Steady: associations that stay open and in use until they are told to end.

    def steady(self, ready: Callable[[], None], ended: Callable[[], bool]) -> None:
        """One-to-one associations of both families; ``messages`` go round in one after the other until ``ended``."""
        with ExitStack() as stack:
            ends: list[tuple[socket.socket, _Receiver, Counter[int]]] = []
            for family in LOOPBACK:
                listener = stack.enter_context(self.open(family, socket.SOCK_STREAM))
                listener.bind((LOOPBACK[family], 0))
                listener.listen(8)
                for _ in range(self.associations):
                    client, end = self.connected(listener)
                    stack.enter_context(_Thread(partial(self.serve_one, end, False)))
                    stack.enter_context(client)
                    ends.append((client, _Receiver(client), Counter()))
            self.round(ends)
            ready()
            while not ended():
                self.round(ends)
                time.sleep(PAUSE)
            for _, receiver, _ in ends:
                self.count(receiver)
                self.ended(False)

    def round(self, ends: list[tuple[socket.socket, _Receiver, Counter[int]]]) -> None:
        for client, receiver, sequence in ends:
            self.converse(partial(_send, client), receiver, sequence)

    def connected(self, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new association.  Each thread is given its end: threads that accept may swap associations, and
        then wait for the end of one that is closed later."""
        client = self.open(listener.family, socket.SOCK_STREAM)
        client.connect(listener.getsockname())
        return client, listener.accept()[0]

    def serve_one(self, end: socket.socket, aborts: bool) -> None:
        with end:
            self.prepare(end)
            receiver = _Receiver(end)
            try:
                while (message := receiver.receive()) is not None:
                    _, _, stream, unordered, _ = HEADER.unpack_from(message.data)
                    _send(end, message.data, stream, FLAG_UNORDERED if unordered else 0)
                ended_by_abort = False
            except ConnectionResetError:
                ended_by_abort = True
        self.count(receiver)
        if ended_by_abort != aborts:
            raise Damaged(f"one-to-one: {'shutdown' if aborts else 'abort'} seen for the opposite")

    # One-to-many: one server socket for all associations, which are all open at once.

    def one_to_many(self, family: socket.AddressFamily) -> None:
        with self.open(family, socket.SOCK_SEQPACKET) as server:
            server.setsockopt(SOL_SCTP, OPTION_EVENTS, bytes((0, 1, 1, 1, 1, 1, 0, 0)))
            server.bind((LOOPBACK[family], 0))
            server.listen(8)
            address = server.getsockname()
            with _Thread(partial(self.serve_many, server)):
                clients = [self.open(family, socket.SOCK_SEQPACKET) for _ in range(self.associations)]
                for client in clients:
                    receiver = _Receiver(client)
                    self.converse(partial(_send, client, address=address), receiver)
                    self.count(receiver)
                for number, client in enumerate(clients):
                    flag = FLAG_ABORT if number % 2 else FLAG_EOF
                    _send(client, b"", 0, flag, address=address)
                    self.ended(flag == FLAG_ABORT)
            for client in clients:
                client.close()

    def serve_many(self, server: socket.socket) -> None:
        receiver = _Receiver(server)
        aborts = self.associations // 2
        expected = Counter(
            {COMM_UP: self.associations, SHUTDOWN_COMP: self.associations - aborts, COMM_LOST: aborts}
        )
        while receiver.changes.total() < expected.total():
            if (message := receiver.receive()) is not None:
                _, _, stream, unordered, _ = HEADER.unpack_from(message.data)
                flags = FLAG_UNORDERED if unordered else 0
                _send(
                    server,
                    message.data,
                    stream,
                    flags,
                    association=message.association,
                    address=message.address,
                )
        self.count(receiver)
        if receiver.changes != expected:
            raise Damaged(f"one-to-many: association changes {dict(receiver.changes)}, not {dict(expected)}")

    def ended(self, aborted: bool) -> None:
        self.summary.associations += 1
        if aborted:
            self.summary.aborts += 1
        else:
            self.summary.shutdowns += 1

    def forgotten(self, others: int) -> None:
        """Wait until the kernel lists no association but others' (graceful ends take their round trips)."""
        while (found := _listed_associations()) > others:
            if time.monotonic() + 0.1 > self.deadline:
                raise Damaged(f"{found - others} associations are still there")
            time.sleep(0.1)


def _listed_associations() -> int:
    return len(Path("/proc/net/sctp/assocs").read_text().splitlines()) - 1


class _Thread(threading.Thread):
    """Runs the other end; leaving the ``with`` block joins it and raises what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.join(5.0 if error else None)
        if self._error is not None:
            raise self._error from error


def _send(
    end: socket.socket,
    data: bytes,
    stream: int,
    flags: int,
    *,
    association: int = 0,
    address: tuple[object, ...] | None = None,
) -> None:
    info = struct.pack("=HHIIi", stream, flags, socket.htonl(7), 0, association)
    end.sendmsg([data] if data else [], [(SOL_SCTP, CMSG_SNDINFO, info)], 0, *([address] if address else []))


def run(
    *, associations: int = 3, messages: int = 20, streams: int = 5, limit: float = 60.0, seed: int = 1
) -> Summary:
    """Carry ``messages`` messages in each of ``associations`` associations of each of the four kinds.

    Ends within ``limit`` seconds, also when the kernel loses messages. Raises nothing for what the
    kernel does: it is in ``errors``. The ``sctp`` module must be there.
    """
    workload = _Workload(associations, messages, streams, limit, seed)
    summary = workload.summary
    started, others = time.monotonic(), _listed_associations()
    for family in LOOPBACK:
        for kind in (workload.one_to_one, workload.one_to_many):
            try:
                kind(family)
            except (Damaged, OSError, struct.error) as error:
                name = f"{kind.__name__}, {socket.AddressFamily(family).name}"
                causes = [error, error.__cause__] if error.__cause__ else [error]
                summary.errors += [f"{name}: {type(cause).__name__}: {cause}" for cause in causes]
    if not summary.errors:
        try:
            workload.forgotten(others)
        except (Damaged, OSError) as error:
            summary.errors.append(str(error))
        if summary.associations != 4 * associations or summary.messages != 8 * associations * messages:
            summary.errors.append("fewer associations or messages than asked for")
    summary.seconds = round(time.monotonic() - started, 3)
    return summary


class Steady:
    """Traffic of a process of its own over associations that stay open from the constructor's end until `stop`.

    Both ends of each association verify every message; one that is lost or damaged, an association that breaks, and
    an end that is no graceful shutdown are ``errors`` of the summary.
    """

    def __init__(
        self, *, associations: int = 1, messages: int = 6, limit: float = 2400.0, seed: int = 1
    ) -> None:
        self._result, result = os.pipe()
        is_ready, ready = os.pipe()
        end, self._end = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            for parents in (self._result, is_ready, self._end):
                os.close(parents)
            workload = _Workload(associations, messages, 5, limit, seed)
            try:
                workload.steady(lambda: os.close(ready), lambda: bool(select.select([end], [], [], 0)[0]))
            except Exception as error:
                causes = [error, error.__cause__] if error.__cause__ else [error]
                workload.summary.errors += [f"steady: {type(cause).__name__}: {cause}" for cause in causes]
            os.write(result, json.dumps(asdict(workload.summary)).encode())
            os._exit(0)
        for childs in (result, ready, end):
            os.close(childs)
        os.read(is_ready, 1)  # ends when the child closes it: all associations carried something
        os.close(is_ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        """A process that was not stopped is killed, so that a failed test leaves no traffic behind."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)

    def stop(self, limit: float = 120.0) -> Summary:
        """Close the associations gracefully; what was carried.  One that has not ended in ``limit`` seconds is an error."""
        # a word, since children that were forked later hold the pipe open
        os.write(self._end, b"end")
        os.close(self._end)
        with os.fdopen(self._result, "rb") as answer:
            if not select.select([answer], [], [], limit)[0]:
                left = Path("/proc/net/sctp/assocs").read_text()
                return Summary(errors=[f"associations have not ended after {limit:.0f} s:\n{left}"])
            told = answer.read()
        os.waitpid(self._child, 0)
        self._child = 0
        return Summary(**json.loads(told)) if told else Summary(errors=["the process died"])


def main() -> int:
    parser = argparse.ArgumentParser(description="SCTP traffic over loopback, verified")
    parser.add_argument("--associations", type=int, default=3, help="of each of the four kinds")
    parser.add_argument("--messages", type=int, default=30, help="in each association, each way")
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    summary = run(**vars(parser.parse_args()))
    print(json.dumps(asdict(summary) | {"ok": summary.ok}))
    return 0 if summary.ok else 1


if __name__ == "__main__":
    sys.exit(main())
