# SPDX-License-Identifier: Apache-2.0
"""Every form in which an instruction writes memory, and what is said of it."""

import pytest

from .build import analyse, function, one, site

RETURN = "\nret"

FORMS = [
    # instruction, kind, operand (base, index, scale, displacement), size
    ("mov qword ptr [rdi], rsi", "store", ("rdi", None, 1, 0), 8),
    ("mov dword ptr [rdi + 0x18], esi", "store", ("rdi", None, 1, 0x18), 4),
    ("mov word ptr [rdi - 8], si", "store", ("rdi", None, 1, -8), 2),
    ("mov byte ptr [rdi + rcx*4 + 3], sil", "store", ("rdi", "rcx", 4, 3), 1),
    ("mov qword ptr [rdi], 7", "store", ("rdi", None, 1, 0), 8),
    ("movnti qword ptr [rdi], rax", "store", ("rdi", None, 1, 0), 8),
    ("movups xmmword ptr [rdi], xmm0", "store", ("rdi", None, 1, 0), 16),
    ("sete byte ptr [rdi + 1]", "store", ("rdi", None, 1, 1), 1),
    ("fxsave [rdi]", "store", ("rdi", None, 1, 0), 512),
    ("clzero", "store", ("rax", None, 1, 0), 64),
    ("pop qword ptr [rdi]", "store", ("rdi", None, 1, 0), 8),
    ("add qword ptr [rdi], 1", "read_modify_write", ("rdi", None, 1, 0), 8),
    ("or dword ptr [rdi + 4], eax", "read_modify_write", ("rdi", None, 1, 4), 4),
    ("not byte ptr [rdi]", "read_modify_write", ("rdi", None, 1, 0), 1),
    ("inc qword ptr [rdi]", "read_modify_write", ("rdi", None, 1, 0), 8),
    ("shl dword ptr [rdi], 3", "read_modify_write", ("rdi", None, 1, 0), 4),
    ("lock inc dword ptr [rdi]", "read_modify_write", ("rdi", None, 1, 0), 4),
    ("lock cmpxchg qword ptr [rdi], rsi", "read_modify_write", ("rdi", None, 1, 0), 8),
    ("lock xadd dword ptr [rdi], esi", "read_modify_write", ("rdi", None, 1, 0), 4),
    ("lock cmpxchg16b [rdi]", "read_modify_write", ("rdi", None, 1, 0), 16),
    ("xchg qword ptr [rdi], rsi", "read_modify_write", ("rdi", None, 1, 0), 8),
    ("bts qword ptr [rdi], 5", "read_modify_write", ("rdi", None, 1, 0), 8),
    ("lock btr qword ptr [rdi], rsi", "read_modify_write", ("rdi", None, 1, 0), 8),
    ("stosb", "string", ("rdi", None, 1, 0), 1),
    ("movsq", "string", ("rdi", None, 1, 0), 8),
    ("rep stosq", "string", ("rdi", None, 1, 0), 8),
    ("rep movsb", "string", ("rdi", None, 1, 0), 1),
]


@pytest.mark.parametrize(("text", "kind", "operand", "size"), FORMS, ids=[form[0] for form in FORMS])
def test_form_of_write(text: str, kind: str, operand: tuple[object, ...], size: int) -> None:
    found = [item for item in one(text + RETURN).sites if item.writes]
    assert len(found) == 1
    written = found[0]
    assert written.operand is not None
    shape = (written.operand.base, written.operand.index, written.operand.scale, written.operand.displacement)
    assert (written.kind, shape, written.size) == (kind, operand, size)
    assert written.rep == text.startswith("rep ")
    assert written.mnemonic.startswith("lock ") == text.startswith("lock ")


@pytest.mark.parametrize(
    "text", ["mov rax, [rdi]", "cmp qword ptr [rdi], 1", "bt qword ptr [rdi], rsi", "lea rax, [rdi + 8]", "lodsq",
             "scasb", "prefetchw [rdi]", "test byte ptr [rdi], 1", "push rbx\npop rbx", "nop dword ptr [rdi]"],
)  # fmt: skip
def test_reads_are_not_sites(text: str) -> None:
    assert not [item for item in one(text + RETURN).sites if item.writes]


def test_bit_operations_name_the_register_that_moves_the_address() -> None:
    assert site(one("lock bts qword ptr [rdi], rsi\nret"), "read_modify_write").bit_index == "rsi"
    assert site(one("lock bts qword ptr [rdi], 3\nret"), "read_modify_write").bit_index is None


def test_constant_repeat_count() -> None:
    assert site(one("mov ecx, 6\nrep stosq\nret"), "string").count == 6
    assert site(one("rep stosq\nret"), "string").count is None


def test_static_and_per_cpu_operands() -> None:
    source = (
        function(
            "f",
            "mov dword ptr [rip + counter], 1\nmov qword ptr [rax*8 + table], rdi\ninc dword ptr gs:[rip + statistics]\n"
            "mov qword ptr [rip + elsewhere + 8], rdi\nret",
        )
        + '.data\n.zero 16\ncounter: .long 0\ntable: .zero 64\n.section .data..percpu,"aw"\nstatistics: .long 0\n'
    )
    stores = [item for item in analyse(source)[0].sites if item.writes]
    places = [item.operand.static for item in stores if item.operand is not None]
    assert [(p.section, p.symbol, p.offset) for p in places if p is not None] == [
        (".data", None, 16),
        (".data", None, 20),
        (".data..percpu", None, 0),
        (None, "elsewhere", 8),
    ]
    assert stores[1].operand is not None
    assert (stores[1].operand.index, stores[1].operand.scale) == ("rax", 8)
    assert stores[2].operand is not None
    assert stores[2].operand.segment == "gs"


def test_calls_jumps_and_returns() -> None:
    source = (
        function("g", "ret")
        + ".type other, @function\n"
        + function(
            "f",
            "call g\ncall outside\ncall __x86_indirect_thunk_r11\ncall qword ptr [rdi + 8]\ncall rax\n"
            "test eax, eax\nje g\njs outside\njmp __x86_return_thunk\n",
        )
        + function("h", "jmp __x86_indirect_thunk_rcx")
        + function("i", "jmp outside")
    )
    by_name = {item.name: item for item in analyse(source)}
    sites = by_name["f"].sites
    assert [(item.kind, item.target) for item in sites] == [
        ("call", "g"),
        ("call", "outside"),
        ("indirect_call", None),
        ("indirect_call", None),
        ("indirect_call", None),
        ("tail_call", "g"),
        ("tail_call", "outside"),
        ("return", None),
    ]
    registers = [item.operand for item in sites if item.kind == "indirect_call"]
    assert [(o.base, o.is_memory) for o in registers if o is not None] == [
        ("r11", False),
        ("rdi", True),
        ("rax", False),
    ]
    assert [item.kind for item in by_name["h"].sites] == ["indirect_jump"]
    assert [(item.kind, item.target) for item in by_name["i"].sites] == [("tail_call", "outside")]


def test_the_ftrace_entry_is_no_site() -> None:
    described = one("call __fentry__\nmov [rdi], rsi\nret")
    assert described.traced
    assert [item.kind for item in described.sites] == ["store", "return"]
    assert described.sites[0].value_source is not None
    assert described.sites[0].value_source.kind == "argument"


def test_hash_leaves_out_what_the_linker_fills_in() -> None:
    first = site(one("mov dword ptr [rip + one_place], 1\nret"), "store")
    second = site(one("mov dword ptr [rip + another_place], 1\nret"), "store")
    third = site(one("mov dword ptr [rip + one_place], 2\nret"), "store")
    assert first.code_hash == second.code_hash != third.code_hash
    assert first.relocated == ((2, 4),)


def test_code_that_cannot_be_decoded_is_a_problem() -> None:
    described = one("mov [rdi], rsi\n.byte 0x06\nmov [rdi], rsi\nret")
    assert any("cannot be decoded" in problem for problem in described.problems)
    assert len(described.sites) == 1


def test_blocks_and_cold_parts() -> None:
    source = (
        function("f", "test edi, edi\njne f.cold\nmov [rsi], rdi\nback:\nret")
        + '.section .text.unlikely,"ax"\n.type f.cold, @function\nf.cold:\npush rbx\ncall report\nmov [rsi], rdi\n'
        + "pop rbx\njmp back\n.size f.cold, .-f.cold\n"
    )
    main, cold = analyse(source)
    assert (main.name, main.parent, cold.name, cold.parent) == ("f", None, "f.cold", "f")
    assert main.blocks[0].jumps == (("f.cold", 0),)
    assert cold.blocks[-1].jumps == (("f", main.blocks[-1].start),)
    assert cold.sites[1].stack_height == 8
    # The value table is the main part's; rsi was lost in the call.
    assert not cold.values
    assert main.sites[0].value != cold.sites[1].value
