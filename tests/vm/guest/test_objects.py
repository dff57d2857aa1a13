# SPDX-License-Identifier: Apache-2.0
"""Objects in a real kernel: the verifier takes them, and they compute what the reference interpreter says."""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from o2cc.bpf.emit import emit_object, emit_test_object
from o2cc.bpf.info import TableInfo, read
from o2cc.bpf.layout import Layout
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.interpreter import Interpreter
from tests.unit.bpf import generated, modules
from tests.vm.guest.agreement import SOURCES, assert_alike, machine_of, records
from tests.vm.guest.bpf_calls import Loaded, loaded


def _rows(image: bytes, table: TableInfo) -> list[dict[str, int]]:
    return [
        {
            name: int.from_bytes(image[place : place + size], "little")
            for name, offset, size in table.columns
            for place in [table.offset + row * table.stride + offset]
        }
        for row in range(table.length)
    ]


def _sections(data: bytes, object_: Loaded) -> dict[str, list[dict[str, int]]]:
    """The writable tables as they are in the kernel."""
    tables = [table for table in read(data).tables if table.section != ".rodata"]
    images = {}
    for section in {table.section for table in tables}:
        size = max(table.offset + table.stride * table.length for table in tables if table.section == section)
        images[section] = object_.section(section, size)
    return {table.name: _rows(images[table.section], table) for table in tables}


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.full) for n in range(3, 20))]
)
def test_the_compiled_checks_agree_with_the_interpreter(seed: int, tmp_path: Path) -> None:
    module = generated.generate(seed, checks=8, sites_each=2)
    data = emit_test_object(module, sources=SOURCES).data
    interpreter = Interpreter(machine_of(module))
    programs = {site.number: site.program for site in read(data).sites}
    with loaded(data, tmp_path, f"differ_{seed}") as object_:
        assert_alike(object_, data, module, interpreter, random.Random(seed))
        tables = _sections(data, object_)
        for name, state in interpreter.machine.tables.items():
            if name in tables:
                columns = [column for column, _ in state.definition.columns]
                expected_rows = [
                    {column: state.load(row, column) for column in columns}
                    for row in range(state.definition.length)
                ]
                assert tables[name] == expected_rows, name
        for name, map_ in interpreter.machine.maps.items():
            definition = map_.definition
            entries = object_.entries(name, len(definition.key), len(definition.fields))
            assert entries == {key: tuple(entry) for key, entry in map_.entries.items()}, name
        assert records(object_) == [event.fields for event in interpreter.machine.events]
        assert len(set(programs)) == len(module.sites)


@pytest.mark.parametrize("layout", list(Layout))
def test_kprobe_objects_load_with_bpftool(layout: Layout, tmp_path: Path) -> None:
    module = generated.generate(100, checks=12, sites_each=3)
    result = emit_object(module, layout=layout, sources=SOURCES)
    with loaded(result.data, tmp_path, f"kprobe_{layout.value}") as object_:
        assert object_.log == ""  # not a word about sections that libbpf does not know, or about BTF
        assert object_.programs() == sorted(name for name, _ in result.statistics.program_instructions)


def test_the_kernel_knows_the_policy_line_of_a_program(tmp_path: Path) -> None:
    module = generated.generate(101, checks=2)
    data = emit_object(module, layout=Layout.SITE, sources=SOURCES).data
    site = read(data).sites[1]
    with loaded(data, tmp_path, "lines") as object_:
        dump = subprocess.run(
            [
                "bpftool",
                "prog",
                "dump",
                "xlated",
                "pinned",
                object_.directory / "programs" / site.program,
                "linum",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    line = generated.SOURCE_TEXT.splitlines()[site.line - 1]
    assert re.search(rf"^; {re.escape(line)} \[file:generated\.o2c line_num:{site.line} ", dump, re.MULTILINE)
    assert f"int {site.program}(struct pt_regs * ctx):" in dump


def _probing_module() -> ir.Module:
    """Two sites of one check on one function: each notes what it saw, in the row of its number."""
    code = Builder()
    number = code.parameter("site")
    seen = code.binary(ir.BinaryOperator.ADD, code.register("rdi"), code.parameter("displacement"))
    code.store("seen", number, "word", seen)
    code.fetch_add("seen", number, "count", 1)
    code.emit("events", number, seen)
    code.decide(ir.Verdict.ALLOW)
    sites = tuple(
        ir.Site(
            n, "do_sys_openat2", 0, ir.SiteKind.STORE, "note", (("site", n), ("displacement", 100 * n + 1))
        )
        for n in range(2)
    )
    return ir.Module(
        "probing",
        (),
        (ir.Map("events", ir.MapKind.RING_BUFFER, (), ("site", "word"), 4096),),
        (ir.Table("seen", (("word", 8), ("count", 8)), (), 2, writable=True),),
        checks=(ir.Check("note", code.finish()),),
        sites=sites,
    )


@pytest.mark.parametrize("layout", list(Layout))
def test_attached_programs_know_their_site(layout: Layout, tmp_path: Path) -> None:
    data = emit_object(_probing_module(), layout=layout, sources={}).data
    with loaded(data, tmp_path, f"attach_{layout.value}") as object_:
        with ExitStack() as probes:
            for site in read(data).sites:
                assert site.cookie == (site.number if layout is Layout.SHAPE else None)
                place = (site.program, site.function, site.probe_offset, site.cookie or 0)
                probes.enter_context(object_.attached(*place))
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.open("nothing", os.O_RDONLY, dir_fd=77)
        tables = _sections(data, object_)
        records = [struct.unpack("<2Q", record) for record in object_.records("events", 4096)]
    assert {(0, 78), (1, 178)} <= set(records)
    assert all(row["count"] >= 1 for row in tables["seen"])
    if layout is Layout.SHAPE:
        assert tables["o2c_stray_cookies"] == [{"count": 0}]


def test_a_wrong_cookie_is_counted(tmp_path: Path) -> None:
    data = emit_object(_probing_module(), layout=Layout.SHAPE, sources={}).data
    with loaded(data, tmp_path, "stray") as object_:
        with object_.attached(read(data).sites[0].program, "do_sys_openat2", 0, cookie=2):
            os.close(os.open("/", os.O_RDONLY))
        tables = _sections(data, object_)
    assert tables["o2c_stray_cookies"][0]["count"] >= 1
    assert [row["count"] for row in tables["seen"]] == [0, 0]


def test_hooks_of_every_kind_load(tmp_path: Path) -> None:
    module = modules.module()
    target = "__kmalloc_noprof" if os.environ["O2C_KERNEL"] == "6.12" else "__kmalloc"
    hooks = tuple(replace(h, target=target) if h.name == "on_return" else h for h in module.hooks)
    data = emit_object(replace(module, hooks=hooks), layout=Layout.SITE, sources=modules.SOURCES).data
    with loaded(data, tmp_path, "hooks") as object_:
        assert object_.log == ""
        assert {"on_free", "on_return", "on_kmalloc", "on_request"} <= set(object_.programs())
        assert object_.run("on_request", bytes(8)) == ir.Verdict.DENY.code
        (record,) = object_.records("events", 65536)
        assert struct.unpack("<3Q", record)[1:] == (1, 4096)


def test_facts_of_the_moment_and_kill(tmp_path: Path) -> None:
    who, kill = Builder(), Builder()
    for kind in (ir.HelperKind.NOW, ir.HelperKind.CPU, ir.HelperKind.TASK, ir.HelperKind.PID_TGID):
        who.store("facts", 0, kind.value, who.helper(kind))
    who.give_back(0)
    kill.give_back(kill.helper(ir.HelperKind.KILL))
    columns = tuple((kind.value, 8) for kind in ir.HelperKind)
    module = ir.Module(
        "facts",
        (),
        tables=(ir.Table("facts", columns, (), 1, writable=True),),
        hooks=(
            ir.Hook("who", ir.HookKind.SYSCALL, "", who.finish()),
            ir.Hook("kill", ir.HookKind.SYSCALL, "", kill.finish()),
        ),
    )
    data = emit_object(module, layout=Layout.SITE, sources={}).data
    with loaded(data, tmp_path, "facts") as object_:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        object_.run("who", bytes(8))
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        (facts,) = _sections(data, object_)["facts"]
        child = os.fork()
        if child == 0:
            object_.run("kill", bytes(8))
            time.sleep(5)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert before <= facts["now"] <= after
    assert facts["cpu"] < (os.cpu_count() or 1)
    assert facts["task"] >> 63 == 1
    assert facts["pid_tgid"] == os.getpid() << 32 | threading.get_native_id()
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
