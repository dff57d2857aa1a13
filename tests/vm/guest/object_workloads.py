# SPDX-License-Identifier: Apache-2.0
"""Small workloads that make a kernel allocate and free objects: sctp, sockets, netlink, files, processes, payload.

object_workloads.py NAME SECONDS
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NAMES = ("sctp", "sctp-options", "sockets", "netlink", "files", "processes", "payload", "forged")
IMAGES = "images"
"""File in the working directory with bytes of objects, which `forged` sends."""


def sctp(seed: int) -> None:
    """Associations of every kind, with traffic."""
    from tests.vm.guest import sctp_workload

    sctp_workload.run(associations=2, messages=8, limit=20.0, seed=seed)


def sockets(seed: int) -> None:
    """TCP, UDP and UNIX sockets, with data both ways and a descriptor passed along."""
    data = random.Random(seed).randbytes(3000)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        end, _ = server.accept()
        with end:
            client.sendall(data)
            end.recv(len(data))
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
            two.bind((address, 0))
            one.sendto(data[:500], two.getsockname())
            two.recv(1000)
    left, right = socket.socketpair()
    with left, right:
        socket.send_fds(left, [data[:100]], [0])
        _, received, _, _ = socket.recv_fds(right, 200, 1)
        for descriptor in received:
            os.close(descriptor)


def netlink(seed: int) -> None:
    """Dumps of links, addresses, routes and rules (include/uapi/linux/rtnetlink.h, 6.1)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as end:
        end.bind((0, 0))
        end.settimeout(2.0)
        for kind in (18, 22, 26, 34):
            end.send(struct.pack("=IHHIIB15x", 32, kind, 0x301, seed & 0xFFFF, 0, 0))
            while not _ends(end.recv(1 << 16)):
                pass


def _ends(datagram: bytes) -> bool:
    """Whether a datagram of netlink messages has the end of a dump (NLMSG_DONE) or an error (NLMSG_ERROR)."""
    at = 0
    while at + 16 <= len(datagram):
        length, kind = struct.unpack_from("=IH", datagram, at)
        if kind in (2, 3) or length < 16:
            return True
        at += (length + 3) // 4 * 4
    return False


def files(seed: int) -> None:
    """Files, directories, links, pipes, epoll, locks, /proc."""
    numbers = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number in range(20):
            path = directory / f"file{number}"
            path.write_bytes(numbers.randbytes(numbers.randrange(20_000)))
            (directory / f"link{number}").symlink_to(path)
            path.read_bytes()
        list(directory.iterdir())
    for table in ("/proc/self/maps", "/proc/meminfo", "/proc/net/dev", "/proc/mounts"):
        Path(table).read_bytes()
    read_end, write_end = os.pipe()
    os.write(write_end, b"x" * 100)
    os.read(read_end, 100)
    os.close(read_end)
    os.close(write_end)


def processes(seed: int) -> None:
    """Processes with their memory, signals and pipes."""
    subprocess.run(
        ["/bin/sh", "-c", "echo hello | cat; ( sleep 0 ) & wait"], check=False, capture_output=True
    )


def sctp_options(seed: int) -> None:
    """Associations with several addresses, keys, many streams, schedulers, messages that nobody reads, refused ones."""
    from tests.vm.guest import sctp_options_workload

    sctp_options_workload.run(seed)


def payload(seed: int) -> None:
    """Buffers that hold what users send: noise, text, zeros, small numbers, and addresses of user memory."""
    from tests.vm.guest import payload_channels

    numbers = random.Random(seed)
    size = numbers.choice((32, 64, 96, 128, 192, 256, 512, 1024, 2048))
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: numbers.randbytes(size),
        lambda: bytes(size),
        lambda: (b"the quick brown fox jumps over the lazy dog " * size)[:size],
        lambda: struct.pack(f"<{size // 8}Q", *(numbers.randrange(1 << 12) for _ in range(size // 8))),
        lambda: struct.pack(
            f"<{size // 8}Q", *(0x7F00_0000_0000 + numbers.randrange(1 << 30) for _ in range(size // 8))
        ),
    )
    for make in makers:
        payload_channels.send_everywhere(make())


def forged(seed: int) -> None:
    """The same buffers with bytes of real objects (`IMAGES`)."""
    from tests.vm.guest import payload_channels

    images = unpack_images(Path(IMAGES).read_bytes())
    for image in random.Random(seed).sample(images, min(20, len(images))):
        payload_channels.send_everywhere(image)


def pack_images(images: list[bytes]) -> bytes:
    """One after the other, each behind its length."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def unpack_images(data: bytes) -> list[bytes]:
    """What `pack_images` was given."""
    images, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        images.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return images


WORKLOADS: dict[str, Callable[[int], None]] = {
    "sctp": sctp,
    "sockets": sockets,
    "netlink": netlink,
    "files": files,
    "processes": processes,
    "sctp-options": sctp_options,
    "payload": payload,
    "forged": forged,
}


def run(name: str, seconds: float) -> int:
    """Run a workload again and again; how often it ran."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        WORKLOADS[name](rounds)
        rounds += 1
    return rounds


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    print(sys.argv[1], run(sys.argv[1], float(sys.argv[2])))
