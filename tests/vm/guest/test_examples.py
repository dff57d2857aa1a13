# SPDX-License-Identifier: Apache-2.0
"""The other examples on a real kernel: each is loaded, traffic of its kind goes on as before, and nothing is reported.

A part by default, since a probe takes some 30 ms to place here: the functions that the traffic runs through. `--full`
attaches all, and adds traffic.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from o2cc.bpf.info import read as read_info
from o2cc.cli.load import matcher
from o2cc.runtime import loader, state, status
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.plan import tracking_sites
from tests.vm.examples import guest_object
from tests.vm.guest.namespaces import Namespace
from tests.vm.guest.netfilter import BITMAP, FAMILY_INET, FAMILY_IPV4, FAMILY_IPV6, HASH, INTERVALS, Netfilter
from tests.vm.guest.reports import reports

MESSAGE = b"a message of some length " * 8


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether everything is to be attached."""
    return bool(request.config.getoption("--full", default=False))


@contextmanager
def _loaded(name: str, functions: str | None) -> Iterator[state.State]:
    """An example with its sites in ``functions`` (globs; None: all of them)."""
    path = guest_object(name)
    data = path.read_bytes()
    wanted = matcher(functions, tracking_sites(read_info(data, str(path))))
    started = time.monotonic()
    result = loader.load(data, path=str(path), options=LoadOptions(wanted=wanted))
    print(f"\n{name}: {result.attached} probes in {time.monotonic() - started:.0f} s")
    try:
        yield result
    except BaseException:
        _reported(name)  # says more of what went wrong than the traffic that did not arrive
        raise
    finally:
        loader.unload(name)


def _reported(name: str) -> dict[str, int]:
    """What was reported since the last look; it is printed, with the skipped checks."""
    found = reports(name).kinds()
    print(f"{name}: {len(found)} kinds of reports; skipped checks: {status.gather(name).missed}")
    for kind, count in found.items():
        print(f"  {count} x {kind}")
    return found


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
        assert _reported("cls_route") == {}


COUNTERS = 40
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


def _send_datagrams(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for _ in range(10):
            sender.sendto(MESSAGE, (address, 9))


@pytest.mark.full
@pytest.mark.timeout(600)
def test_packet_filter_works_confined(full: bool) -> None:
    _run("modprobe", "nf_tables")
    old = Namespace(_filter_in_a_namespace)
    with _loaded("nf_tables", None if full else NF_TABLES) as loaded:
        assert loaded.attached > 60
        control = Netfilter()
        try:
            for round_number in range(2):
                table = f"o2c{round_number}"
                control.add_counter(table, "output", socket.IPPROTO_UDP)
                _send_datagrams(socket.AF_INET, "127.0.0.1")
                assert b"counter" in control.dump_rules()
                control.delete(table)
            if full:
                _filter_by_sets(control)
                old.work()
                new = Namespace(_filter_in_a_namespace)
                new.work()
                new.end()
        finally:
            control.close()
        assert _reported("nf_tables") == {}
    old.end()


def _filter_in_a_namespace() -> None:
    """Many counters, which lie close together in per-CPU memory; what a container has no more when it ends."""
    control = Netfilter()
    control.add_counter("o2c", "output", socket.IPPROTO_UDP, COUNTERS)
    _send_datagrams(socket.AF_INET, "127.0.0.1")
    assert control.dump_rules().count(b"counter") == COUNTERS
    control.close()


def _filter_by_sets(control: Netfilter) -> None:
    """Every kind of set, in tables of three families, filled, used, listed and removed."""
    for family in (FAMILY_IPV4, FAMILY_IPV6, FAMILY_INET):
        for kind in (BITMAP, INTERVALS, HASH):
            control.add_lookup("o2csets", "output", (9, 99, 999), kind, family)
            _send_datagrams(socket.AF_INET, "127.0.0.1")
            _send_datagrams(socket.AF_INET6, "::1")
            listed = control.dump_all("o2csets", family=family)
            assert b"lookup" in listed["rules"]
            assert (999).to_bytes(2, "big") in listed["elements"]
            control.delete("o2csets", family=family)


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


@pytest.mark.timeout(600)
def test_ipv6_output_works_confined(full: bool, dummy: str) -> None:
    with _loaded("ip6_output", None if full else IP6_OUTPUT) as loaded:
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
        if full:
            _more_of_ipv6(dummy)
        assert _reported("ip6_output") == {}
        if full:
            _append("2001:db8::2")
            # What the policy's header says of MSG_MORE.
            places = {place.split(" at ")[1].split("+")[0].split(".")[0] for place in _reported("ip6_output")}
            assert places <= {"__ip6_append_data", "__ip6_make_skb"}


def _more_of_ipv6(interface: str) -> None:
    """Fragments, echo requests, multicast."""
    index = socket.if_nametoindex(interface)
    _run("ip", "-6", "address", "add", "2001:db8::1/64", "dev", interface, "nodad")
    _run("ip", "neighbour", "add", "2001:db8::2", "lladdr", "02:00:00:00:00:02", "dev", interface)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        for _ in range(5):
            sender.sendto(MESSAGE * 20, ("2001:db8::2", 9))  # more than the interface takes at once
        sender.sendto(MESSAGE, ("ff02::1", 9, 0, index))
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.settimeout(10)
        for number in range(3):
            raw.sendto(struct.pack(">BBHHH", 128, 0, 0, 77, number) + MESSAGE, ("::1", 0))
            while raw.recv(4096)[0] != 129:  # the echo reply; the request arrives as well
                pass


def _append(address: str) -> None:
    """A datagram in parts."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.connect((address, 9))
        for _ in range(3):
            sender.send(MESSAGE, socket.MSG_MORE)
        sender.send(MESSAGE)
