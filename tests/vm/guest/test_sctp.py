# SPDX-License-Identifier: Apache-2.0
"""SCTP works in the unconfined kernel: what later tests compare a confined one with."""

from __future__ import annotations

import socket
import subprocess

import pytest

from tests.vm.guest import sctp_workload


@pytest.fixture(scope="module", autouse=True)
def _sctp() -> None:
    # It stays: its own control sockets hold references, so the kernel never lets it go.
    subprocess.run(["modprobe", "sctp"], check=True)


def test_a_message_crosses_an_association() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as client,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.settimeout(10)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"over sctp")
            assert accepted.recv(100) == b"over sctp"


def test_workload_loses_nothing() -> None:
    summary = sctp_workload.run()
    assert summary.errors == []
    assert summary.shutdowns == 8
    assert summary.aborts == 4
    assert summary.messages == 8 * 3 * 20
