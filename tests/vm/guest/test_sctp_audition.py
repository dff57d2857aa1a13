# SPDX-License-Identifier: Apache-2.0
"""Associations that are open when the SCTP policy is loaded: the shipped tree judges their objects, traffic goes on.

The policy only reports, so that a wrong refusal is an event and nothing else: `deny` would have broken the traffic there.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from o2cc.bpf.info import SiteInfo
from o2cc.runtime import kernel_calls, libbpf, loader, state
from o2cc.runtime.loader import LoadOptions
from tests.vm.guest.reports import reports
from tests.vm.guest.test_sctp_confined import matches
from tests.vm.guest.victim_support import unload_all
from tests.vm.policies import SCTP_AUDITION_OBJECT, guest_sctp_object

pytestmark = pytest.mark.full

NAME = "sctp"
MESSAGES = 12
STORES = (
    "sctp_inq_*",
    "sctp_outq_*",
    "sctp_chunk_*",
    "sctp_ulpq_*",
    "sctp_transport_*",
    "sctp_wfree",
    "sctp_sendmsg*",
)
UNSURE = ("untracked object", "uncertain object", "audition disagrees at free")


def wanted(site: SiteInfo) -> bool:
    return site.kind != "store" or matches(site, STORES)


@pytest.fixture
def old_pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Associations of both families with a message each way, open before anything is loaded."""
    subprocess.run(["modprobe", "sctp"], check=True)
    unload_all()
    with ExitStack() as stack:
        pairs = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
            listener.bind((address, 0))
            listener.listen(4)
            for _ in range(2):
                client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
                client.settimeout(20)
                client.connect(listener.getsockname())
                end = stack.enter_context(listener.accept()[0])
                end.settimeout(20)
                pairs.append((client, end))
        for pair in pairs:
            exchange(*pair, 1)
        yield pairs
    if NAME in state.names():
        loader.unload(NAME)


def exchange(client: socket.socket, end: socket.socket, messages: int) -> None:
    """Messages of several sizes there and back, whole and in order."""
    for number in range(messages):
        data = bytes([number % 251]) * (1, 100, 1400, 4000)[number % 4]
        for sender, receiver in ((client, end), (end, client)):
            sender.sendall(data)
            assert receiver.recv(8192) == data


@pytest.mark.timeout(600)
def test_objects_of_open_associations_are_judged_and_none_is_refused(
    old_pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    data = guest_sctp_object(SCTP_AUDITION_OBJECT).read_bytes()
    loaded = loader.load(data, options=LoadOptions(degrade="report", wanted=wanted))
    print(f"attached {loaded.attached}")
    for pair in old_pairs:
        exchange(*pair, MESSAGES)
    accepted = accepted_objects()
    for client, end in old_pairs:
        client.close()
        end.close()
    found = reports(NAME)
    print(
        f"{accepted} objects accepted;",
        *(f"{count} x {kind}" for kind, count in found.kinds().items()),
        sep="\n",
    )
    refused = [event.sentence() for event in found.events if event.kind not in UNSURE]
    assert accepted >= len(old_pairs)
    assert refused == []


def accepted_objects() -> int:
    """How many objects that the tree has accepted are alive."""
    descriptor = kernel_calls.get_pinned(state.pins(NAME) / "maps" / "auditions")
    try:
        return sum(1 for _ in libbpf.keys(descriptor, 8))
    finally:
        os.close(descriptor)
