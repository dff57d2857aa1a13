# SPDX-License-Identifier: Apache-2.0
"""What a system does to SCTP beside carrying its traffic: network namespaces, addresses, settings, looks into its state.

Containers have network namespaces of their own, and addresses come and go all day; each reaches SCTP through another of its
entries.  Constants: include/uapi/linux/sockios.h (6.1).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from tests.vm.guest import sctp_workload
from tests.vm.guest.namespaces import Namespace

SIOCSIFADDR, SIOCSIFFLAGS, SIOCDIFADDR = 0x8916, 0x8914, 0x8936
LOOPBACK_INDEX = 1  # of every namespace: drivers/net/loopback.c
SETTINGS = {
    "auth_enable": "1",
    "addip_enable": "1",
    "cookie_hmac_alg": "sha1",
    "rto_min": "800",
    "rto_initial": "2000",
    "max_autoclose": "1000",
}
UDP_PORT = 9899  # RFC 6951
QUEUE_SECONDS = 0.3
"""SCTP looks at addresses that came or went after 50 ms (net/sctp/protocol.c, SCTP_ADDRESS_TICK_DELAY)."""


def traffic() -> None:
    """Associations over loopback.  Raises OSError when something is lost."""
    if errors := sctp_workload.run(associations=1, messages=8, limit=60.0).errors:
        raise OSError("; ".join(errors))


def addresses_come_and_go() -> None:
    """An address of each family, for long enough that SCTP notices."""
    address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("10.77.0.1"))
    address6 = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, "fd77::1"), 64, LOOPBACK_INDEX)
    down = struct.pack("16sh14x", b"lo:1", 0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control6,
    ):
        fcntl.ioctl(control, SIOCSIFADDR, address)
        fcntl.ioctl(control6, SIOCSIFADDR, address6)
        time.sleep(QUEUE_SECONDS)
        fcntl.ioctl(control, SIOCSIFFLAGS, down)  # an alias without IFF_UP is removed (net/ipv4/devinet.c)
        fcntl.ioctl(control6, SIOCDIFADDR, address6)
        time.sleep(QUEUE_SECONDS)


def settings_change() -> None:
    """Each setting gets another value and its own back."""
    for name, value in SETTINGS.items():
        path = Path("/proc/sys/net/sctp", name)
        before = path.read_text()
        with suppress(OSError):  # not every kernel has every algorithm
            path.write_text(value)
        path.write_text(before)


def packets_come_in_udp() -> None:
    """Traffic that both ends wrap in UDP (RFC 6951).  Raises OSError when something is lost."""
    paths = [Path("/proc/sys/net/sctp", name) for name in ("udp_port", "encap_port")]
    for path in paths:
        path.write_text(str(UDP_PORT))
    try:
        traffic()
    finally:
        for path in paths:
            path.write_text("0")


def state_is_read() -> None:
    for name in ("assocs", "eps", "remaddr", "snmp"):
        Path("/proc/net/sctp", name).read_text()


def run(old: Namespace) -> None:
    """All of it once.  ``old``: a namespace with `traffic` from before.

    Addresses come and go in a new namespace: those of older ones stand in lists with objects from before the policy.
    """
    old.work()
    settings_change()
    state_is_read()
    packets_come_in_udp()
    new = Namespace(_life_of_a_container)
    new.work()
    new.end()
    time.sleep(1.0)


def _life_of_a_container() -> None:
    addresses_come_and_go()
    traffic()
