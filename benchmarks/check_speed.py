# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds of the fast path of a check of a store, beside an empty one, a hash lookup and the paper's check.

    python benchmarks/check_speed.py [--runs 400] [--json FILE]

Needs root, and loads and test-runs programs of type `syscall` on the running kernel; nothing is attached.  Under
emulation the figures mean nothing.

Every program is the same loop over the same addresses, which calls another function: 2,048 random ones of objects that
lie 128 KiB apart.  With 1,024 objects the owner shadow's lines stay in the processor's nearest cache, as they do for
code that works on a few megabytes; 32,768 objects over 4 GiB, more than any private heap has, push it out, and the hash
table as well.  The loop takes the time itself.  Programs run in turns; medians, and the difference to the empty one.

    empty        returns at once
    shadow       the owner shadow's byte alone: one bound and one load
    own heap     `check_store` of o2cc/lower/library, as it is compiled for a policy with a private heap, for memory that
                 is the compartment's own: the owner shadow's byte, and whether the range lies in one slot
    free         what the hooks at every free in the system do where nothing is known of the memory: a count by the address's hash
    hash lookup  one lookup of the object, which is there
    the paper's  struct page, head, slab cache, lookup of the cache (which is not there), size, the object's base, lookup
                 of the object (arXiv 2401.05641; the peer `shortest` of compile.py).  It reads the same fields of
                 whatever page lies at the address, slab or not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import struct
import sys
from dataclasses import replace
from pathlib import Path

from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import read
from o2cc.bpf.layout import Layout
from o2cc.compiler import library_sources
from o2cc.diagnostics import SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.parser import parse_library, parse_module
from o2cc.ir.verifier import require_valid
from o2cc.kernel.btf import read_btf
from o2cc.kernel.types import kernel_facts
from o2cc.lower.constants import TRACKED_PAGES
from o2cc.runtime import heap
from o2cc.runtime.kernel_calls import map_value_size, run_program
from o2cc.runtime.libbpf import BpfObject, lookup, update
from o2cc.runtime.tables import table

ROUNDS = 2048
OBJECTS = 32768
USED = (1024, OBJECTS)
FIRST_FRAME = 1 << 20  # 4 GiB: behind the hole that PCI devices have
STRIDE = 17  # log2 of the distance of objects
FRAMES = FIRST_FRAME + (OBJECTS << STRIDE - 12)
SLOT = 1 + 6  # what the shadow says of a slab of 64-byte slots

_TEXT = """
module check_speed { kernel "running" }
map objects hash (base) -> (size) capacity 65536
map caches hash (cache) -> (known) capacity 64
table globals (page_offset 8, vmalloc 8, vmemmap 8) length 1 writable { 0x8000000000000000 0 0 }
table clock (mask 8, at 8, nanoseconds 8, answers 8, seed 8) length 1 writable { 0 0 0 0 1 }
function store_verdict(address, size, site, sp, bp) {
entry:
  return 1
}
function report(site, kind, address, size, sp) {
entry:
  return 1
}
function address_of(number) inline {
entry:
  %masked = and %number, OBJECT_MASK
  %distance = shl %masked, STRIDE
  %page_offset = load globals[0].page_offset
  %low = add %page_offset, FIRST_BYTE
  %address = add %low, %distance
  return %address
}
function base_of(address) {
entry:
  %page_offset = load globals[0].page_offset
  %vmemmap = load globals[0].vmemmap
  %distance = sub %address, %page_offset
  %frame = lshr %distance, 12
  %index = mul %frame, size(struct page)
  %page = add %vmemmap, %index
  %link_address = add %page, offset(page.compound_head)
  %link = read 8 %link_address
  %tail = and %link, 1
  %before = sub %link, 1
  %head = select %tail, %before, %page
  %cache_address = add %head, offset(slab.slab_cache)
  %cache = read 8 %cache_address
  %known = lookup caches, %cache
  br %known, owned, look
owned:
  return 0
look:
  %size_address = add %cache, offset(kmem_cache.size)
  %read_size = read 4 %size_address
  %size = select %read_size, %read_size, 64
  %bytes = sub %head, %vmemmap
  %head_frame = udiv %bytes, size(struct page)
  %linear = shl %head_frame, 12
  %slab = add %linear, %page_offset
  %inside = sub %address, %slab
  %number = udiv %inside, %size
  %start = mul %number, %size
  %base = add %slab, %start
  return %base
}
function do_empty(address, size, site, sp, bp) {
entry:
  return 0
}
function do_shadow(address, size, site, sp, bp) {
entry:
  %owner = call owner_of(%address)
  %foreign = eq %owner, 0
  return %foreign
}
function do_free(address, size, site, sp, bp) {
entry:
  %row = call object_row(%address)
  %known = load known_objects[%row].count
  return %known
}
function do_lookup(address, size, site, sp, bp) {
entry:
  %e = lookup objects, %address
  br %e, there, absent
there:
  %length = entry %e objects.size
  %fits = ult %length, %size
  return %fits
absent:
  return 1
}
function do_paper(address, size, site, sp, bp) {
entry:
  %base = call base_of(%address)
  br %base, look, owned
owned:
  return 0
look:
  %e = lookup objects, %base
  br %e, there, absent
there:
  %length = entry %e objects.size
  %limit = add %base, %length
  %end = add %address, %size
  %beyond = ugt %end, %limit
  return %beyond
absent:
  return 1
}
hook prepare syscall "" {
entry:
  %page_offset_at = symbol page_offset_base
  %vmemmap_at = symbol vmemmap_base
  %page_offset = read 8 %page_offset_at
  %vmemmap = read 8 %vmemmap_at
  store globals[0].page_offset = %page_offset
  store globals[0].vmemmap = %vmemmap
  $i = 0
  jump next
next:
  %more = ult $i, 1024
  br %more, step, done
step:
  %number = fetch_add clock[0].at, 1
  %address = call address_of(%number)
  %base = call base_of(%address)
  %one = update objects, [%address], [4096]
  %two = update objects, [%base], [0x100000]
  %following = add $i, 1
  $i = %following
  jump next
done:
  return 0
}
"""

_LOOP = """
hook NAME syscall "" {
entry:
  %seed = load clock[0].seed
  %mask = load clock[0].mask
  $state = %seed
  $answers = 0
  $i = 0
  %begin = now
  jump next
next:
  %more = ult $i, ROUNDS
  br %more, step, done
step:
  %product = mul $state, 6364136223846793005
  %state = add %product, 1442695040888963407
  $state = %state
  %high = lshr %state, 48
  %number = and %high, %mask
  %address = call address_of(%number)
  %answer = call FUNCTION(%address, 8, 0, 0, 0)
  %answers = add $answers, %answer
  $answers = %answers
  %following = add $i, 1
  $i = %following
  jump next
done:
  %end = now
  %nanoseconds = sub %end, %begin
  store clock[0].nanoseconds = %nanoseconds
  store clock[0].answers = $answers
  store clock[0].seed = $state
  return 0
}
"""

PROGRAMS = {
    "empty": "do_empty",
    "shadow": "do_shadow",
    "own heap": "check_store",
    "free": "do_free",
    "hash lookup": "do_lookup",
    "the paper's": "do_paper",
}


def constants() -> dict[str, int]:
    """Offsets of the running kernel, from its BTF, and what the library asks for."""
    path = "/sys/kernel/btf/vmlinux"
    facts = kernel_facts(read_btf(Path(path).read_bytes(), path), None, "")
    found = {"const(TRACKED_PAGES)": TRACKED_PAGES, "const(PRIVATE_PLAIN)": 1}
    for name in ("page.compound_head", "slab.slab_cache", "kmem_cache.size"):
        found[f"offset({name})"] = facts.fields[name].offset
    found["size(struct page)"] = facts.sizes["page"]
    return found


def module() -> ir.Module:
    """All programs, with `check_store`, the owner shadow and the counts of frees as the library has them."""
    given = constants()
    library = library_sources()
    text = (
        _TEXT
        + _excerpt(library["store"].text, "function check_store(", "\n}\n")
        + _excerpt(library["known"].text, "table known_objects ", "\n")
        + _excerpt(library["known"].text, "function object_row(", "\n}\n")
    )
    for name, function in PROGRAMS.items():
        text += _LOOP.replace("NAME", _hook(name)).replace("FUNCTION", function)
    numbers = {
        "OBJECT_MASK": OBJECTS - 1,
        "STRIDE": STRIDE,
        "FIRST_BYTE": FIRST_FRAME << 12,
        "ROUNDS": ROUNDS,
    }
    for name, number in numbers.items():
        text = text.replace(name, str(number))
    made = parse_module(SourceFile("check_speed.ir", text), given, own_spans=True)
    shadow = parse_library(library["private_heap"], given)
    whole = replace(
        made, tables=(*made.tables, *shadow.tables), functions=(*made.functions, *shadow.functions)
    )
    require_valid(whole)
    return whole


def _excerpt(text: str, begin: str, end: str) -> str:
    start = text.index(begin)
    return text[start : text.index(end, start) + len(end)]


def _hook(name: str) -> str:
    return "run_" + re.sub("[^a-z]", "_", name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("loading programs needs root")
    data = emit_object(module(), layout=Layout.SITE, sources={}).data
    info = read(data)
    clock = table(info, "clock")
    shadow = table(info, heap.SHADOW)
    if clock is None or shadow is None:
        sys.exit("the object has no clock or no owner shadow")
    before = os.getloadavg()
    with BpfObject(heap.resized(data, info, FRAMES)) as loaded:
        loaded.load()
        maps = loaded.maps()
        programs = {name: program.descriptor for name, program in loaded.programs().items()}
        shadow_bytes = FRAMES * shadow.stride
        update(maps[shadow.section], bytes(4), bytes([SLOT]) * shadow_bytes)
        for _ in range(OBJECTS // 1024):
            run_program(programs["prepare"])
        section = maps[clock.section]
        size = map_value_size(section)

        def run(name: str, objects: int) -> tuple[float, int]:
            image = bytearray(lookup(section, bytes(4), size) or bytes(size))
            struct.pack_into("<Q", image, clock.offset, objects - 1)
            update(section, bytes(4), bytes(image))
            run_program(programs[_hook(name)])
            image = bytearray(lookup(section, bytes(4), size) or bytes(size))
            _, _, nanoseconds, answers = struct.unpack_from("<4Q", image, clock.offset)
            return nanoseconds / ROUNDS, answers

        measured = {
            objects: [{name: run(name, objects) for name in PROGRAMS} for _ in range(options.runs)]
            for objects in USED
        }
    print(f"{os.uname().release}, {options.runs} runs of {ROUNDS} in turns, medians")
    print("load average before and after: " + ", ".join(f"{a[0]:.1f}" for a in (before, os.getloadavg())))
    figures: dict[str, dict[str, float]] = {}
    for objects, found in measured.items():
        medians = {name: statistics.median(row[name][0] for row in found) for name in PROGRAMS}
        figures[str(objects)] = medians
        print(f"{f'{objects} objects':16}{'ns':>8}{'over empty':>12}{'answers no':>12}")
        for name, value in medians.items():
            share = sum(row[name][1] for row in found) / (options.runs * ROUNDS)
            print(f"{name:16}{value:8.2f}{value - medians['empty']:12.2f}{share:12.1%}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
