# SPDX-License-Identifier: Apache-2.0
"""The other examples on a real kernel: each is loaded, in part, and traffic of its kind goes on as before.

Unlike sctp's, these policies are first ones: proper use still leads to reports, of arguments of functions that the
standard library does not speak of. The tests print what is reported; they ask that the objects load and attach, and that
nothing is disturbed.

A part, since a probe takes some 30 ms to place here: the functions that the traffic runs through, whole.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from o2cc.cli.load import matcher
from o2cc.runtime import loader, state
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.monitor import Losses, follow
from tests.vm.examples import guest_object
from tests.vm.guest.netfilter import Netfilter

MESSAGE = b"a message of some length " * 8


@contextmanager
def _loaded(name: str, functions: str | None) -> Iterator[state.State]:
    """An example with its sites in ``functions`` (globs; None: all of them)."""
    path = guest_object(name)
    result = loader.load(path.read_bytes(), path=str(path), options=LoadOptions(wanted=matcher(functions)))
    try:
        yield result
    finally:
        loader.unload(name)


def _reports(name: str) -> list[str]:
    """What was reported since the last look, each kind at each function once; losses count as reports."""
    found = []
    for item in follow(name, seconds=0):
        if isinstance(item, Losses):
            found.append(f"losses: {item.sentence()}")
        else:
            function = item.function.partition(".")[0]
            found.append(f"{item.kind} at {function}" + (f", {item.note}" if item.note else ""))
    return sorted(set(found))


def _show_reports(name: str) -> None:
    """Print what was reported."""
    reports = _reports(name)
    print(f"{name}: {len(reports)} kinds of reports", *reports, sep="\n  ")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@pytest.fixture(scope="module")
def dummy() -> Iterator[str]:
    """A network interface that drops what it is given."""
    _run("modprobe", "dummy", "numdummies=0")
    _run("ip", "link", "add", "o2cdummy", "type", "dummy")
    _run("ip", "address", "add", "192.0.2.1/24", "dev", "o2cdummy")
    _run("ip", "link", "set", "o2cdummy", "up")
    yield "o2cdummy"
    _run("ip", "link", "delete", "o2cdummy")


def test_route_classifier_works_confined(dummy: str) -> None:
    _run("modprobe", "cls_route")
    _run("tc", "qdisc", "add", "dev", dummy, "root", "handle", "1:", "prio")
    with _loaded("cls_route", None) as loaded:
        assert loaded.attached > 100
        for realm in (10, 11, 12):
            change = ("dev", dummy, "parent", "1:", "protocol", "ip", "prio", "100")
            _run("tc", "filter", "add", *change, "route", "to", str(realm), "classid", "1:1")
        _run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "realm", "10")
        _run("ip", "neighbour", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", dummy)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(10):
                sender.sendto(MESSAGE, ("198.51.100.1", 9))
        shown = subprocess.run(
            ["tc", "-s", "filter", "show", "dev", dummy], capture_output=True, text=True, check=True
        )
        assert shown.stdout.count("flowid 1:1") == 3
        _run("tc", "filter", "delete", "dev", dummy, "parent", "1:", "prio", "100")
        _show_reports("cls_route")


NF_TABLES = ",".join(
    (
        "nf_tables_newtable",
        "nf_tables_addchain*",
        "nf_tables_newchain",
        "nf_tables_newrule",
        "nf_tables_deltable",
        "nft_do_chain*",
        "nft_trans_*",
        "nft_counter_*",
        "nft_payload_init*",
        "nft_cmp_*",
        "nft_chain_*",
        "nf_tables_expr_*",
        "nf_tables_rule_*",
        "nf_tables_table_*",
        "nf_tables_chain_*",
        "nf_tables_dump_rules*",
    )
)


@pytest.mark.full
def test_packet_filter_works_confined() -> None:
    _run("modprobe", "nf_tables")
    with _loaded("nf_tables", NF_TABLES) as loaded:
        assert loaded.attached > 60
        control = Netfilter()
        try:
            for round_number in range(2):
                table = f"o2c{round_number}"
                control.add_counter(table, "output", socket.IPPROTO_UDP)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    for _ in range(10):
                        sender.sendto(MESSAGE, ("127.0.0.1", 9))
                assert b"counter" in control.dump_rules()
                control.delete(table)
        finally:
            control.close()
        _show_reports("nf_tables")


IP6_OUTPUT = ",".join(
    (
        "ip6_xmit",
        "ip6_output",
        "ip6_finish_output*",
        "ip6_append_data",
        "ip6_send_skb",
        "ip6_make_skb",
        "ip6_setup_cork",
        "ip6_cork_release",
        "ip6_push_pending_frames",
    )
)


@pytest.mark.full
def test_ipv6_output_works_confined() -> None:
    with _loaded("ip6_output", IP6_OUTPUT) as loaded:
        assert loaded.attached > 60
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("::1", 0))
            receiver.settimeout(10)
            for _ in range(10):
                sender.sendto(MESSAGE, receiver.getsockname())
                assert receiver.recv(4096) == MESSAGE
        with (
            socket.create_server(("::1", 0), family=socket.AF_INET6) as server,
            socket.create_connection(server.getsockname()[:2], timeout=10) as client,
        ):
            accepted, _ = server.accept()
            with accepted:
                client.sendall(MESSAGE)
                assert accepted.recv(4096) == MESSAGE
        _show_reports("ip6_output")
