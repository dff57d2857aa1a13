# SPDX-License-Identifier: Apache-2.0
"""What network namespaces lead to: those that are there at loading, those that come later, and those that end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, SupportsIndex

import pytest

from o2cc.ir import nodes as ir
from o2cc.ir.machine import MapState
from o2cc.simulation.world import USER
from tests.unit.lower.confined import OWN, Confined, confined, offset_of, sctp

RULES = """
    write struct net { sctp.addr_waitq }
    write behind struct net { sctp.sctp_statistics[0 .. sizeof(struct sctp_mib)] }
    write behind struct sctp_sock { ep[0 .. sizeof(struct sctp_endpoint)] }
    entries of struct pernet_operations
"""
AREA = 0xFFFF_8880_3D00_0000  # of processor 0
COOKIE = 0x2_F000
PER_CPU = 32  # flag of `gain` for what alloc_percpu gave
MIB = next(struct.size for struct in sctp().types.structs if struct.name == "sctp_mib")


@pytest.fixture
def kernel() -> Confined:
    found = confined(RULES)
    machine = found.world.machine
    machine.memory.write_word(machine.symbols["__per_cpu_offset"], AREA)
    found.store(USER)
    return found


def _namespace(kernel: Confined, cookie: int) -> int:
    net = kernel.object(4096, cache="net_namespace")
    kernel.world.machine.memory.write_word(net + offset_of("net", "sctp.sctp_statistics"), cookie)
    return net


def _link(kernel: Confined, namespaces: list[int]) -> None:
    """A circular list through its head, as the kernel's."""
    head = kernel.world.symbol("net_namespace_list")
    nodes = [head, *(net + offset_of("net", "list") for net in namespaces), head]
    for node, following in pairwise(nodes):
        kernel.world.machine.memory.write_word(node, following)
        kernel.world.machine.memory.write_word(following + 8, node)


def _counter(kernel: Confined, cookie: int) -> str:
    return kernel.store((cookie + AREA) % (1 << 64))


def test_namespaces_from_before_loading_are_met_by_the_loader(kernel: Confined) -> None:
    """Catches a container whose counters are a violation, and a walk that ends at the first namespace."""
    cookies = [COOKIE + 0x1000 * number for number in range(3)]
    _link(kernel, [_namespace(kernel, cookie) for cookie in cookies])
    assert [_counter(kernel, cookie) for cookie in cookies] == ["deny"] * 3
    kernel.hook("o2c_namespaces")
    assert [_counter(kernel, cookie) for cookie in cookies] == ["allow"] * 3
    assert _counter(kernel, COOKIE + MIB) == "deny"
    assert kernel.store(COOKIE) == "deny", "a user's address is none of alloc_percpu"


def test_the_control_socket_of_each_namespace_is_met(kernel: Confined) -> None:
    """Catches the endpoint that answers packets of no association, in a container from before loading."""
    net, control, endpoint = _namespace(kernel, COOKIE), kernel.object(2048), kernel.object(512)
    memory = kernel.world.machine.memory
    memory.write_word(net + offset_of("net", "sctp.ctl_sock"), control)
    memory.write_word(control + offset_of("sctp_sock", "ep"), endpoint)
    _link(kernel, [net])
    assert kernel.store(endpoint) == "deny"
    kernel.hook("o2c_namespaces")
    assert (kernel.store(endpoint), kernel.store(control)) == ("allow", "deny")


def test_without_namespaces_the_walk_ends(kernel: Confined) -> None:
    """Catches a walk that takes the head of the list for a namespace, or goes round."""
    _link(kernel, [])
    assert kernel.hook("o2c_namespaces") == 0
    assert kernel.world.machine.maps["objects"].entries == {}


def test_what_is_no_namespace_any_more_is_not_met(kernel: Confined) -> None:
    """Catches a walk into freed memory while containers end: whoever fills it would say what the compartment may write."""
    initial = kernel.world.symbol("init_net")
    nets = [_namespace(kernel, COOKIE + 0x1000 * number) for number in range(3)]
    given_away = kernel.object(4096, cache="msg_msg")
    kernel.world.machine.memory.write_word(
        given_away + offset_of("net", "sctp.sctp_statistics"), COOKIE + 0x7000
    )
    _link(kernel, [initial, nets[0], given_away, nets[1], nets[2]])
    # taken out, its links as they were
    kernel.world.machine.memory.write_word(nets[2] + offset_of("net", "list") + 8, 0xDEAD_0000_0000_0122)
    kernel.hook("o2c_namespaces")
    counters = [_counter(kernel, COOKIE + distance) for distance in (0, 0x1000, 0x2000, 0x7000)]
    assert counters == ["allow", "allow", "deny", "deny"]


def test_a_walk_that_meets_a_node_in_motion_says_so(kernel: Confined) -> None:
    """Catches namespaces that stay unknown because the one before them ended while the list was being walked."""
    cookies = [COOKIE + 0x1000 * number for number in range(4)]
    nets = [_namespace(kernel, cookie) for cookie in cookies]
    _link(kernel, nets)
    memory = kernel.world.machine.memory
    nodes = [net + offset_of("net", "list") for net in nets]
    # __list_del of the second: the third's link back is written first, and for a moment its neighbour does not lead to it
    memory.write_word(nodes[2] + 8, nodes[0])
    assert kernel.hook("o2c_namespaces") != 0
    assert [_counter(kernel, cookie) for cookie in cookies] == ["allow", "allow", "deny", "deny"]
    memory.write_word(nodes[0], nodes[2])
    memory.write_word(nodes[1] + 8, 0xDEAD_0000_0000_0122)
    assert kernel.hook("o2c_namespaces") == 0
    assert [_counter(kernel, cookie) for cookie in cookies] == ["allow"] * 4


def test_more_namespaces_than_a_walk_takes_are_said(kernel: Confined) -> None:
    """Two in a ring that does not lead back to the head stand for a list without an end."""
    nets = [_namespace(kernel, COOKIE + 0x1000 * number) for number in range(2)]
    _link(kernel, nets)
    memory = kernel.world.machine.memory
    first, last = (net + offset_of("net", "list") for net in nets)
    memory.write_word(last, first)
    memory.write_word(first + 8, last)
    assert kernel.hook("o2c_namespaces") != 0
    assert [_counter(kernel, COOKIE + 0x1000 * number) for number in range(2)] == ["allow"] * 2


def test_rows_are_given_back(kernel: Confined) -> None:
    """Catches a machine on which containers come and go until there is no room for what packets need."""
    ranges, counted = kernel.world.machine.maps["ranges"], kernel.world.machine.tables["known_pages"]
    for number in range(4000):
        cookie = COOKIE + 0x40 * (number * 7919 % 4001)
        assert kernel.call("gain", cookie, 40, OWN | PER_CPU, 0) == 1
        if number >= 8:  # as many live at a time
            kernel.call("forget", COOKIE + 0x40 * ((number - 8) * 7919 % 4001))
        assert len(ranges.entries) <= 18
    assert kernel.counter("lost_tracking") == 0
    assert sum(count for (count,) in counted.rows.values()) == len(ranges.entries) == 16


def test_thousands_of_namespaces_have_room(kernel: Confined) -> None:
    """Catches a machine with many containers on which packets find no room any more; and room where no policy needs it."""
    assert kernel.world.machine.maps["ranges"].definition.capacity == 131_072
    assert confined().world.machine.maps["ranges"].definition.capacity == 32_768


def test_a_row_is_not_given_back_under_a_range(kernel: Confined) -> None:
    """Catches the end of one counter that takes its neighbours in the same 32 bytes along."""
    for cookie in (COOKIE, COOKIE + 8, COOKIE + 16):
        kernel.call("gain", cookie, 8, OWN | PER_CPU, 0)
    for gone, left in ((COOKIE + 8, {COOKIE, COOKIE + 16}), (COOKIE, {COOKIE + 16}), (COOKIE + 16, set())):
        kernel.call("forget", gone)
        assert {c for c in (COOKIE, COOKIE + 8, COOKIE + 16) if _counter(kernel, c) == "allow"} == left
    assert kernel.world.machine.maps["ranges"].entries == {}


class _Beside(MapState):
    """A map in which another processor does something at one moment, before the operation of that name is carried out."""

    def __init__(self, state: MapState) -> None:
        super().__init__(state.definition)
        self.entries = state.entries
        self.before: dict[str, list[Callable[[], object]]] = {}

    def _let(self, operation: str) -> None:
        if self.before.get(operation):
            self.before[operation].pop(0)()

    def lookup(self, key: tuple[int, ...]) -> list[int] | None:
        self._let("lookup")
        return super().lookup(key)

    def update(self, key: tuple[int, ...], fields: tuple[int, ...], *, no_replace: bool = False) -> int:
        self._let("update")
        return super().update(key, fields, no_replace=no_replace)

    def delete(self, key: tuple[int, ...]) -> int:
        self._let("delete")
        return super().delete(key)


def _beside(kernel: Confined) -> _Beside:
    maps = kernel.world.machine.maps
    maps["ranges"] = beside = _Beside(maps["ranges"])
    return beside


def _range(start: int, size: int) -> list[int]:
    return [start, 1 << 32 | size, 0, 0, 0, 0, 0, 0]


def test_two_processors_make_the_first_range_of_a_row(kernel: Confined) -> None:
    """Catches a range that is lost since the row has come into being between the look and the making."""
    ranges = _beside(kernel)
    ranges.before["update"] = [
        lambda: ranges.entries.__setitem__((COOKIE >> 5,), _range(COOKIE + 16, 8)),
    ]
    assert kernel.call("gain", COOKIE, 8, OWN | PER_CPU, 0) == 1
    assert (_counter(kernel, COOKIE), _counter(kernel, COOKIE + 16)) == ("allow", "allow")
    assert kernel.counter("lost_tracking") == 0


def test_a_range_waits_for_the_end_of_a_row_that_is_given_back(kernel: Confined) -> None:
    """Catches a range in a row that another processor is about to delete."""
    ranges = _beside(kernel)
    ranges.entries[COOKIE >> 5,] = [1, 0] * 4
    looks: list[Callable[[], object]] = [lambda: None] * 4
    ranges.before["lookup"] = [*looks, lambda: ranges.entries.pop((COOKIE >> 5,))]
    assert kernel.call("gain", COOKIE, 8, OWN | PER_CPU, 0) == 1
    assert ranges.entries == {(COOKIE >> 5,): _range(COOKIE, 8)}
    assert kernel.counter("lost_tracking") == 0


def test_a_row_that_stays_taken_is_counted(kernel: Confined) -> None:
    """Catches a wait without an end."""
    _beside(kernel).entries[COOKIE >> 5,] = [1, 0] * 4
    assert kernel.call("gain", COOKIE, 8, OWN | PER_CPU, 0) == 0
    assert kernel.counter("lost_tracking") == 1


def test_an_entry_of_another_page_by_now_keeps_nothing(kernel: Confined) -> None:
    """Catches a range that went into an entry which was given back, and given to another row, between the look and the write."""
    ranges = _beside(kernel)
    elsewhere = _range(COOKIE + 0x400, 8)
    ranges.entries[COOKIE >> 5,] = elsewhere

    def moved() -> None:  # before the look that makes sure
        ranges.entries[(COOKIE + 0x400) >> 5,] = ranges.entries.pop((COOKIE >> 5,))

    ranges.before["lookup"] = [*[lambda: None] * 3, moved]
    assert kernel.call("gain", COOKIE, 8, OWN | PER_CPU, 0) == 1
    starts = {key: [start for start in entry[::2] if start] for key, entry in ranges.entries.items()}
    assert starts == {((COOKIE + 0x400) >> 5,): [COOKIE + 0x400], (COOKIE >> 5,): [COOKIE]}


class _Watched(list[int]):
    """An entry whose every write is told."""

    def __init__(self, words: list[int], tell: Callable[[list[int]], None]) -> None:
        super().__init__(words)
        self._tell = tell

    def __setitem__(self, at: SupportsIndex | slice, value: Any) -> None:
        super().__setitem__(at, value)
        self._tell(list(self))


def test_no_slot_shows_the_length_of_another_range(kernel: Confined) -> None:
    """Catches a slot that was undone, or whose range ended, with its old length: for a moment the next range in it would have that."""
    ranges = _beside(kernel)
    lengths = {COOKIE: 24, COOKIE + 4: 4, COOKIE + 0x400: 8}
    seen: list[list[int]] = []
    elsewhere = _Watched(_range(COOKIE + 0x400, 8), seen.append)
    ranges.entries[COOKIE >> 5,] = elsewhere

    def moved() -> None:  # as above: the slot that was taken is one of another row's
        ranges.entries[(COOKIE + 0x400) >> 5,] = ranges.entries.pop((COOKIE >> 5,))

    ranges.before["lookup"] = [*[lambda: None] * 3, moved]
    assert kernel.call("gain", COOKIE, 24, OWN | PER_CPU, 0) == 1
    assert elsewhere == _range(COOKIE + 0x400, 8)
    own = ranges.entries[COOKIE >> 5,] = _Watched(ranges.entries[COOKIE >> 5,], seen.append)
    kernel.call("forget", COOKIE)
    own[:] = [0] * 8
    ranges.entries[COOKIE >> 5,] = own
    assert kernel.call("gain", COOKIE + 4, 4, OWN | PER_CPU, 0) == 1
    assert len(seen) > 8
    for words in seen:
        for start, hold in zip(words[::2], words[1::2], strict=True):
            assert start != 0 or hold == 0
            assert start in (0, 1) or hold & 0xFFFF_FFFF in (0, lengths[start])


def test_a_row_is_open_again_where_it_could_not_be_deleted(kernel: Confined) -> None:
    """Catches a row that nobody can use any more since the kernel refused to delete it."""
    ranges = _beside(kernel)
    kernel.call("gain", COOKIE, 8, OWN | PER_CPU, 0)
    entry = ranges.entries[COOKIE >> 5,]
    ranges.before["delete"] = [ranges.entries.clear]
    kernel.call("forget", COOKIE)
    assert entry == [0] * 8


def test_a_new_namespace_is_met_when_the_compartment_sees_it(kernel: Confined) -> None:
    """Catches containers that are started after loading."""
    net = _namespace(kernel, COOKIE)
    kernel.run(kernel.site("sctp_defaults_init", ir.SiteKind.ENTRY), net)
    assert _counter(kernel, COOKIE) == "allow"
    assert kernel.store(net + offset_of("net", "sctp.addr_waitq")) == "allow"


def test_what_a_namespace_led_to_ends_when_it_is_freed(kernel: Confined) -> None:
    """Catches per-CPU memory that stays the compartment's when the kernel gives it to somebody else, and counters of a live
    namespace that go with an ended one, whose struct the kernel frees long after its counters."""
    net, other = _namespace(kernel, COOKIE), _namespace(kernel, COOKIE + 0x1000)
    _link(kernel, [net, other])
    kernel.hook("o2c_namespaces")
    kernel.hook("o2c_percpu_free", 0, 0, COOKIE)
    assert [_counter(kernel, COOKIE), _counter(kernel, COOKIE + 0x1000)] == ["deny", "allow"]
    heir = _namespace(kernel, COOKIE)
    kernel.run(kernel.site("sctp_defaults_init", ir.SiteKind.ENTRY), heir)
    kernel.hook("o2c_cache_free", 0, net, 0)
    assert _counter(kernel, COOKIE) == "allow"
    assert kernel.store(net + offset_of("net", "sctp.addr_waitq")) == "allow", "its cache tells the type"


def test_a_namespace_is_met_once(kernel: Confined) -> None:
    """Catches a compartment that aims a namespace's pointers at somebody's memory, and has the kernel hand it over again."""
    net, control = _namespace(kernel, COOKIE), kernel.object(2048)
    victim = kernel.object(512, cache="cred_jar")
    memory = kernel.world.machine.memory
    _link(kernel, [net])
    kernel.hook("o2c_namespaces")
    memory.write_word(net + offset_of("net", "sctp.ctl_sock"), control)
    memory.write_word(control + offset_of("sctp_sock", "ep"), victim)
    memory.write_word(net + offset_of("net", "sctp.sctp_statistics"), 0x1_F000)
    kernel.run(kernel.site("sctp_ctrlsock_exit", ir.SiteKind.ENTRY), net)
    kernel.hook("o2c_namespaces")
    assert (kernel.store(victim), _counter(kernel, 0x1_F000), _counter(kernel, COOKIE)) == (
        "deny",
        "deny",
        "allow",
    )


def test_counters_of_many_namespaces_lie_side_by_side(kernel: Confined) -> None:
    """Catches a page of per-CPU memory that has room for four of them."""
    cookies = [COOKIE + MIB * number for number in range(40)]
    _link(kernel, [_namespace(kernel, cookie) for cookie in cookies])
    kernel.hook("o2c_namespaces")
    assert {_counter(kernel, cookie + MIB - 8) for cookie in cookies} == {"allow"}
    assert kernel.counter("lost_tracking") == 0
    assert _counter(kernel, COOKIE + MIB * 40) == "deny"


def test_a_policy_that_does_not_see_new_namespaces_says_so() -> None:
    """Catches containers that are started later and of which nothing is known, without a word."""
    without = RULES.replace("entries of struct pernet_operations", "")
    assert [item.code for item in confined(without).lowered.warnings if item.code == "O2C0522"] == ["O2C0522"]
    assert [item.code for item in confined(RULES).lowered.warnings if item.code == "O2C0522"] == []


@pytest.mark.parametrize("first", [0, 8])
def test_small_counters_lie_side_by_side(kernel: Confined, first: int) -> None:
    """Catches a rule set with a counter of 16 bytes in each rule, aligned to 8, of which some are nobody's."""
    cookies = [COOKIE + first + 16 * number for number in range(100)]
    assert {kernel.call("gain", cookie, 16, OWN | PER_CPU, 0) for cookie in cookies} == {1}
    assert {_counter(kernel, cookie + 8) for cookie in cookies} == {"allow"}
    kernel.call("forget", cookies[50])
    assert [_counter(kernel, cookies[number]) for number in (49, 50, 51)] == ["allow", "deny", "allow"]
