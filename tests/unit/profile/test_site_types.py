# SPDX-License-Identifier: Apache-2.0
"""Types of allocation sites, from small modules in assembler: flow of the result, and DWARF written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.elf import read_elf
from o2cc.profile.allocations import module_code
from o2cc.profile.candidates import Choice, TypeFacts
from o2cc.profile.dwarf import read_debug_info
from o2cc.profile.dwarf_entries import DwarfError
from o2cc.profile.site_types import Site, SiteNames, SiteTable, site_types
from tests.unit.kernel.build import BtfWriter, assemble, function, module_source

TAIL = "\n.section .note.GNU-stack\n"


def _types() -> Btf:
    """struct thing (40 bytes) begins with a list_head; struct owner has a `struct thing *` at 8 and a pointer to
    itself at 16."""
    writer = BtfWriter()
    word = writer.integer("unsigned long", 8)
    link = writer.struct("list_head", 16, [("next", word, 0), ("prev", word, 64)])
    thing = writer.struct("thing", 40, [("list", link, 0), ("value", word, 128)])
    pointer = writer.pointer(thing)
    owner_id = writer.next_id
    owner = writer.struct(
        "owner", 24, [("count", word, 0), ("thing", pointer, 64), ("next", owner_id + 1, 128)]
    )
    owners = writer.pointer(owner)
    assert owners == owner_id + 1
    writer.function("take", writer.prototype(0, [("n", word), ("t", pointer)]))
    writer.function("link", writer.prototype(0, [("l", writer.pointer(link))]))
    writer.function("make", writer.prototype(pointer, []))
    writer.function("fill", writer.prototype(0, [("o", owners)]))
    writer.function("kfree", writer.prototype(0, [("p", writer.pointer(0))]))
    return read_btf(writer.bytes(), "made")


def _sites(source: str) -> dict[str, Site]:
    elf = read_elf(assemble(module_source(source)), "sample.o")
    code = module_code(elf, _types())
    # The kernel's types stand for the module's own.
    return site_types(type(code)(code.layout, code.btf, True, code.units, code.names), None)


def _site(name: str, body: str) -> Site:
    (found,) = _sites(function(name, body)).values()
    return found


ALLOCATE = "mov edx, 40\ncall kmalloc_trace\n"


def test_an_argument_of_a_typed_function() -> None:
    site = _site("f", ALLOCATE + "mov rsi, rax\nmov edi, 1\ncall take\nret")
    assert (site.callee, site.asked) == ("kmalloc_trace", 40)
    assert site.choose(40, 0) == (Choice("thing"), "flow")
    assert site.choose(48, 0) == (Choice(None), "site")


def test_a_result_survives_a_spill_and_a_call() -> None:
    site = _site(
        "f",
        "sub rsp, 24\n"
        + ALLOCATE
        + "mov [rsp+8], rax\nmov rdi, rax\ncall link\nmov rsi, [rsp+8]\ncall take\n"
        "add rsp, 24\nret",
    )
    assert {item.name for item in site.flow} == {"thing", "list_head"}
    assert site.choose(40, 0) == (Choice("thing"), "flow"), "the one that begins with the other"


def test_what_the_callee_left_in_a_register_is_not_the_result() -> None:
    site = _site("f", ALLOCATE + "mov rdi, rax\ncall kfree\nmov edi, 1\ncall take\nret")
    assert site.flow == ()


def test_the_functions_own_result() -> None:
    site = _site("make", ALLOCATE + "ret")
    assert site.choose(40, 0) == (Choice("thing"), "flow")


def test_a_result_that_is_one_of_two_is_a_weaker_rank() -> None:
    site = _site("make", ALLOCATE + "test rax, rax\njne 1f\nmov rax, -12\n1:\nret")
    assert site.flow == ()
    assert [item.name for item in site.flow_joined] == ["thing"]
    assert site.choose(40, 0) == (Choice("thing"), "flow")


@pytest.mark.parametrize(
    ("store", "expected"),
    [("mov [rbx+8], rax", "thing"), ("mov [rbx+16], rax", None), ("mov [rbx+4], rax", None)],
)
def test_a_field_of_an_argument(store: str, expected: str | None) -> None:
    site = _site("fill", "push rbx\nmov rbx, rdi\n" + ALLOCATE + store + "\npop rbx\nret")
    assert site.choose(40, 0)[0].name == expected


def test_a_field_of_what_a_field_leads_to() -> None:
    site = _site("fill", "push rbx\nmov rbx, [rdi+16]\n" + ALLOCATE + "mov [rbx+8], rax\npop rbx\nret")
    assert site.choose(40, 0) == (Choice("thing"), "flow")


def test_a_copy_of_user_memory_is_payload() -> None:
    assert _site("f", ALLOCATE + "mov rdi, rax\ncall _copy_from_user\nret").payload == "_copy_from_user"
    assert _site("f", ALLOCATE + "mov rsi, rax\ncall _copy_from_user\nret").payload == ""
    assert _site("f", ALLOCATE + "lea rdi, [rax+8]\ncall _copy_from_user\nret").payload == ""
    assert _site("f", "call memdup_user\nret").payload == "memdup_user"


def test_a_function_that_ends_in_an_allocation_hands_the_site_to_its_caller() -> None:
    sites = _sites(
        function("wrapper", "mov edx, 40\njmp kmalloc_trace")
        + function("make", "call wrapper\nret")
        + function("other", "call kfree\nret")
    )
    assert list(sites) == ["make+0x5"]
    assert sites["make+0x5"].choose(40, 0) == (Choice("thing"), "flow")


def test_profiled_allocators_have_the_same_names() -> None:
    assert _site("make", "mov edx, 40\ncall __kmalloc_cache_noprof\nret").callee == "__kmalloc_cache"


CREATE = "mov esi, {size}\ncall kmem_cache_create\nmov [rip+cachep], rax\nret"
ALLOCATE_FROM = (
    "mov rdi, [rip+cachep]\ncall kmem_cache_alloc\nret\n.bss\ncachep: .quad 0\nother: .quad 0\n.text"
)


def test_a_cache_has_objects_of_the_size_that_it_was_created_for() -> None:
    source = function("init", CREATE.format(size=40)) + function("make", ALLOCATE_FROM)
    assert _sites(source)["make+0xc"].asked == 40
    other = source.replace("[rip+cachep], rax", "[rip+other], rax")
    assert _sites(other)["make+0xc"].asked is None
    twice = source + function("again", CREATE.format(size=48))
    assert _sites(twice)["make+0xc"].asked is None, "which of two caches it is, is not known"


SAVED = ["rbx", "rbp", "r12", "r13", "r14", "r15"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*SAVED, "spill", "call", "clobber"]), max_size=8))
def test_moves_spills_and_calls_never_change_what_a_result_is(steps: list[str]) -> None:
    """The result is carried through callee-saved registers and the stack; what is overwritten is another value."""
    body = "sub rsp, 32\n" + ALLOCATE + "mov rbx, rax\n"
    held: str | None = "rbx"
    for step in steps:
        if held is None:
            break
        if step == "call":
            body += "call kfree\n"
        elif step == "spill":
            body += f"mov [rsp+16], {held}\nxor {held}, {held}\nmov {held}, [rsp+16]\n"
        elif step == "clobber":
            body += f"mov {held}, [rip+x]\n"
            held = None
        elif step != held:
            body += f"mov {step}, {held}\nmov {held}, 5\n"
            held = step
    register = held or "rbx"
    body += f"mov rsi, {register}\ncall take\nadd rsp, 32\nret"
    lost = held is None
    site = _site("f", body + "\n.data\nx: .quad 0\n.text")
    if lost and not any(step == "clobber" for step in steps):
        raise AssertionError("the model lost it")
    assert bool(site.flow) == (not lost), body


def test_names_of_sites() -> None:
    names = SiteNames([(0x100, "f"), (0x200, "init_module"), (0x200, "g"), (0x300, "f")])
    assert names.name(0x105) == "f+0x5"
    assert names.name(0x200) == "f+0x100", "the return address of a call at the function's end"
    assert names.name(0x201) == "g+0x1"
    assert names.name(0x304) == "f#1+0x4"
    assert names.name(0x90) is None
    assert SiteNames([(0x100, "f"), (0x300, "f")], numbered=False).name(0x304) is None


def test_debug_information_and_flow_that_disagree() -> None:
    one, other = TypeFacts("one", "struct", 40), TypeFacts("other", "struct", 40)
    around = TypeFacts("around", "struct", 40, first=("other",))
    site = Site("kmalloc_trace", 40, False, "", (one,), (), (other,), ())
    assert site.choose(40, 0) == (Choice(None, ("one", "other")), "conflict")
    site = Site("kmalloc_trace", 40, False, "", (around,), (), (other,), ())
    assert site.choose(40, 0) == (Choice("around"), "debug")
    site = Site("kmalloc_trace", 40, False, "", (other,), (), (around,), ())
    assert site.choose(40, 0) == (Choice("around"), "flow")


def test_a_table_is_read_as_it_was_written() -> None:
    thing = TypeFacts("thing", "struct", 40, True, ("list_head",))
    site = Site("kmalloc_trace", 40, True, "memdup_user", (thing,), (), (), (thing,))
    table = SiteTable(
        "6.1.0", "ab", {"f+0x5": site, "m:f+0x5": Site("__kmalloc", None, False, "", (), (), (), ())}
    )
    assert SiteTable.from_bytes(table.to_bytes()) == table
    for broken in (b"", table.to_bytes()[:-9], b"\xfd7zXZ\0"):
        with pytest.raises(ValueError, match="not a table"):
            SiteTable.from_bytes(broken)


# Two variables of one function: `t`, a `struct thing *` in rbx from the call on; `s`, in rbp, where the result never is.
# The offsets of DIEs are labels minus the unit's start.
DWARF = """
.section .debug_abbrev,"",@progbits
.Labbrev:
.uleb128 1; .uleb128 0x11; .byte 1; .uleb128 0x11; .uleb128 1; .uleb128 0x12; .uleb128 7; .byte 0, 0
.uleb128 2; .uleb128 0x2e; .byte 1; .uleb128 3; .uleb128 8; .uleb128 0x11; .uleb128 1; .uleb128 0x12; .uleb128 7; .byte 0, 0
.uleb128 3; .uleb128 0x34; .byte 0; .uleb128 3; .uleb128 8; .uleb128 0x49; .uleb128 0x13; .uleb128 2; .uleb128 0x17; .byte 0, 0
.uleb128 4; .uleb128 0x0f; .byte 0; .uleb128 0x0b; .uleb128 0x0b; .uleb128 0x49; .uleb128 0x13; .byte 0, 0
.uleb128 5; .uleb128 0x13; .byte 1; .uleb128 3; .uleb128 8; .uleb128 0x0b; .uleb128 0x0b; .byte 0, 0
.uleb128 6; .uleb128 0x0d; .byte 0; .uleb128 3; .uleb128 8; .uleb128 0x49; .uleb128 0x13; .uleb128 0x38; .uleb128 0x0b; .byte 0, 0
.uleb128 7; .uleb128 0x24; .byte 0; .uleb128 3; .uleb128 8; .uleb128 0x0b; .uleb128 0x0b; .byte 0, 0
.uleb128 8; .uleb128 0x1d; .byte 0; .uleb128 0x31; .uleb128 0x13; .uleb128 0x11; .uleb128 1; .uleb128 0x12; .uleb128 7; .byte 0, 0
.uleb128 9; .uleb128 0x2e; .byte 0; .uleb128 3; .uleb128 8; .byte 0, 0
.uleb128 10; .uleb128 0x2e; .byte 0; .uleb128 3; .uleb128 8; .uleb128 0x49; .uleb128 0x13; .byte 0, 0
.byte 0
.section .debug_info,"",@progbits
.Lunit:
.long .Lunit_end - .Lunit - 4
.value 5
.byte 1, 8
.long .Labbrev
.uleb128 1; .quad f; .quad .Lf_end - f
.Lkcalloc: .uleb128 9; .asciz "kcalloc"
.Lwhole: .uleb128 5; .asciz "whole"; .byte 40
.uleb128 6; .asciz "thing"; .long .Lthing - .Lunit; .byte 0
.byte 0
.Lwhole_pointer: .uleb128 4; .byte 8; .long .Lwhole - .Lunit
.Lmake_whole: .uleb128 10; .asciz "make_whole"; .long .Lwhole_pointer - .Lunit
.Lword: .uleb128 7; .asciz "long"; .byte 8
.Lthing: .uleb128 5; .asciz "thing"; .byte 40
.uleb128 6; .asciz "value"; .long .Lword - .Lunit; .byte 0
.byte 0
.Lpointer: .uleb128 4; .byte 8; .long .Lthing - .Lunit
.Lnumbers: .uleb128 4; .byte 8; .long .Lword - .Lunit
.uleb128 2; .asciz "f"; .quad f; .quad .Lf_end - f
.uleb128 3; .asciz "t"; .long .Lpointer - .Lunit; .long .Lt
.uleb128 3; .asciz "s"; .long .Lnumbers - .Lunit; .long .Ls
INLINED
.byte 0
.byte 0
.Lunit_end:
.section .debug_loclists,"",@progbits
.Lt: .byte 6; .quad f
.byte 9; .uleb128 0; .uleb128 0
.byte 4; .uleb128 .Lcalled - f; .uleb128 .Lf_end - f; .uleb128 1; .byte 0x53
.byte 0
.Ls: .byte 8; .quad f; .uleb128 .Lf_end - f; .uleb128 1; .byte 0x56
.byte 0
.section .debug_aranges,"",@progbits
.long .Laranges_end - .Laranges
.Laranges: .value 2; .long .Lunit; .byte 8, 0
.long 0
.quad f, .Lf_end - f, 0, 0
.Laranges_end:
"""
F = "push rbx\nmov edx, 40\n.Lcall: call kmalloc_trace\n.Lreturn: mov rbx, rax\n.Lcalled: pop rbx\nret\n.Lf_end:"


def _with_debug(debug: str, body: str = F) -> Site:
    source = assemble(module_source(function("f", body)) + debug.replace("INLINED\n", ""))
    elf = read_elf(source, "sample.o")
    code = module_code(elf, _types())
    bases = {section.name: section.start for section in code.layout.sections}
    (site,) = site_types(code, read_debug_info(elf, bases)).values()
    return site


def test_a_variable_that_holds_the_result() -> None:
    site = _with_debug(DWARF)
    assert site.debug == (TypeFacts("thing", "struct", 40),)
    assert site.choose(40, 0) == (Choice("thing"), "debug")


def test_a_variable_whose_register_holds_something_else() -> None:
    site = _with_debug(DWARF, F.replace("mov rbx, rax", "mov rbx, 7"))
    assert site.debug == ()


def test_code_of_kcalloc_around_the_call_tells_an_array() -> None:
    inlined = ".uleb128 8; .long .Lkcalloc - .Lunit; .quad .Lcall; .quad .Lreturn - .Lcall\n"
    assert not _with_debug(DWARF).array
    site = _with_debug(DWARF.replace("INLINED\n", inlined))
    assert site.array
    assert site.choose(120, 0) == (Choice("thing[]"), "debug")


def test_an_inlined_function_around_the_call_tells_what_it_makes() -> None:
    inlined = ".uleb128 8; .long .Lmake_whole - .Lunit; .quad .Lcall; .quad .Lreturn - .Lcall\n"
    site = _with_debug(DWARF.replace("INLINED\n", inlined))
    assert {item.name for item in site.debug} == {"thing", "whole"}
    assert site.choose(40, 0) == (Choice("whole"), "debug"), "a whole begins with a thing"


def test_a_form_that_is_not_known_is_an_error() -> None:
    with pytest.raises(DwarfError, match="form"):
        _with_debug(DWARF.replace(".uleb128 2; .uleb128 0x17;", ".uleb128 2; .uleb128 0x22;"))
    with pytest.raises(DwarfError, match="version 4"):
        _with_debug(DWARF.replace(".value 5", ".value 4"))
