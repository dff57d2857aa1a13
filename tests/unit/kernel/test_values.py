# SPDX-License-Identifier: Apache-2.0
"""Stack heights, frame addresses and value numbers."""

from o2cc.kernel.description import Function, Site

from .build import analyse, function, one, site


def stores(described: Function) -> list[Site]:
    return [item for item in described.sites if item.writes]


def test_frame_addresses_count_from_the_return_address() -> None:
    described = one("push rbp\npush rbx\nsub rsp, 0x20\nmov [rsp], rdi\nmov [rsp + 0x18], esi\nmov [rsp + 0x38], rdx\n"
                    "add rsp, 0x20\npop rbx\npop rbp\nret")  # fmt: skip
    assert [(item.stack_height, item.frame_offset) for item in stores(described)] == [
        (0x30, -0x30),
        (0x30, -0x18),
        (0x30, 8),
    ]
    assert site(described, "return").stack_height == 0
    assert (described.frame, described.saved) == (16, (("rbp", -8), ("rbx", -16)))


def test_frame_pointer_and_leave() -> None:
    described = one("push rbp\nmov rbp, rsp\nsub rsp, 0x40\nmov [rbp - 8], rdi\ncall g\nleave\nret")
    assert stores(described)[0].frame_offset == -16
    assert site(described, "return").stack_height == 0


def test_derived_frame_pointers() -> None:
    described = one(
        "sub rsp, 0x40\nlea rax, [rsp + 8]\nmov rcx, rax\nadd rcx, 0x10\nmov [rcx + 8], rdi\nadd rsp, 0x40\nret"
    )
    assert stores(described)[0].frame_offset == -0x40 + 0x20


def test_rounded_frames_have_bounds() -> None:
    described = one("push rbp\nmov rbp, rsp\nand rsp, -16\nsub rsp, 0x30\nmov [rsp + 8], rdi\nleave\nret")
    written = stores(described)[0]
    assert written.frame_offset is None
    assert written.frame_range == (-8 - 15 - 0x30 + 8, -8 - 0x30 + 16)
    assert written.stack_height is None
    assert site(described, "return").stack_height == 0
    assert not described.problems


REALIGNED = """lea r10, [rsp + 8]
and rsp, -16
push qword ptr [r10 - 8]
push rbp
mov rbp, rsp
push r12
push r10
push rbx
sub rsp, 0x30
mov [rbp - 0x20], rdi
call g
add rsp, 0x30
pop rbx
pop r10
pop r12
pop rbp
lea rsp, [r10 - 8]
ret"""


def test_a_stack_that_is_rounded_first_keeps_the_callers() -> None:
    """Registers count from the copy of the return address; without the copy's register nothing is claimed."""
    described = one(REALIGNED)
    assert described.saved == (("rbp", -8), ("r12", -16), ("r10", -24), ("rbx", -32))
    assert (described.frame, described.stack_kept) == (32, -24)
    assert site(described, "call").stack_height is None
    assert site(described, "call").frame_pointer
    assert site(described, "return").stack_height == 0
    lost = one(REALIGNED.replace("push r10\n", "push r11\n"))
    assert lost.stack_kept is None
    assert not site(lost, "call").frame_pointer


def test_a_variable_amount_of_stack_is_a_problem() -> None:
    described = one("push rbp\nmov rbp, rsp\nsub rsp, rdi\nmov [rsp], rsi\ncall g\nleave\nret")
    assert stores(described)[0].frame_offset is None
    assert site(described, "return").stack_height == 0
    assert any("stack height" in problem for problem in described.problems)


def test_values_follow_moves_and_constants() -> None:
    described = one(
        "mov [rdi], rsi\nlea rbx, [rdi + 8]\nadd rbx, 8\nmov r12, rbx\nsub r12, 4\nmov [r12], rsi\nret"
    )
    first, second = stores(described)
    assert first.value == second.value
    assert (first.value_offset, second.value_offset) == (0, 12)
    assert first.value_source is not None
    assert (first.value_source.kind, first.value_source.number) == ("argument", 0)


def test_partial_and_32_bit_writes_lose_the_value() -> None:
    for change in (
        "mov edi, edi",
        "mov dil, 1",
        "add edi, 1",
        "shl rdi, 1",
        "xchg rdi, rax",
        "cmove rdi, rax",
    ):
        first, second = stores(one(f"mov [rdi], rsi\n{change}\nmov [rdi], rsi\nret"))
        assert first.value != second.value, change


def test_spills_and_reloads() -> None:
    described = one(
        "sub rsp, 0x18\nmov [rsp + 8], rdi\ncall g\nmov rax, [rsp + 8]\nmov [rax], rsi\nadd rsp, 0x18\nret"
    )
    source = stores(described)[1].value_source
    assert source is not None
    assert (source.kind, source.number) == ("argument", 0)


def test_a_spill_is_forgotten_when_the_frame_escapes() -> None:
    described = one(
        "sub rsp, 0x18\nmov [rsp + 8], rdi\nlea rdi, [rsp]\ncall g\nmov rax, [rsp + 8]\nmov [rax], rsi\nadd rsp, 0x18\nret"
    )
    source = stores(described)[1].value_source
    assert source is not None
    assert source.kind == "load"


def test_saved_registers_outlive_escapes_and_calls() -> None:
    described = one(
        "push rbx\nsub rsp, 0x10\nmov rbx, rdi\nmov rdi, rsp\ncall g\nmov [rbx], rax\nadd rsp, 0x10\npop rbx\nmov [rbx], rax\nret"
    )
    inside, after = stores(described)
    assert inside.value_source is not None
    assert inside.value_source.kind == "argument"
    assert inside.value != after.value


def test_an_overlapping_store_ends_a_spill() -> None:
    described = one(
        "sub rsp, 0x18\nmov [rsp + 8], rdi\nmov dword ptr [rsp + 12], 0\nmov rax, [rsp + 8]\nmov [rax], rsi\nadd rsp, 0x18\nret"
    )
    source = stores(described)[2].value_source
    assert source is not None
    assert source.kind == "load"


def test_results_of_calls_and_loads() -> None:
    described = one(
        "push rbx\ncall g\nmov rbx, rax\nmov [rbx + 8], rax\nmov rdx, [rbx + 0x10]\nmov [rdx], rax\npop rbx\nret"
    )
    first, second = stores(described)
    assert first.value_source is not None
    assert second.value_source is not None
    assert (first.value_source.kind, first.value_source.callee, first.value_source.site) == ("call", "g", 1)
    assert (second.value_source.kind, second.value_source.value, second.value_source.offset) == (
        "load",
        first.value,
        16,
    )
    assert described.values[second.value or 0] == second.value_source


def test_two_loads_of_one_place_are_two_values() -> None:
    first, second = stores(one("mov rax, [rdi]\nmov [rax], rsi\nmov rax, [rdi]\nmov [rax], rsi\nret"))
    assert first.value != second.value


def test_joins_make_new_values_unless_all_ways_agree() -> None:
    described = one(
        "test esi, esi\nje 1f\nmov rbx, rdi\njmp 2f\n1:\nmov rbx, rdx\n2:\nmov [rbx], rsi\nmov [rdi], rsi\nret"
    )
    merged, same = stores(described)
    assert merged.value_source is not None
    assert same.value_source is not None
    assert merged.value_source.kind == "merge"
    assert same.value_source.kind == "argument"


def test_loop_variables() -> None:
    described = one(
        "1:\nmov [rdi], rsi\ntest rax, rax\nje 2f\nmov [rdi + 8], rsi\n2:\nadd rdi, 16\ncmp rdi, rdx\njne 1b\nmov [rsi], rdi\nret"
    )
    first, second, third = stores(described)
    assert first.value == second.value
    assert first.value_source is not None
    assert third.value_source is not None
    assert first.value_source.kind == "merge"
    assert third.value_source.kind == "argument"


def test_a_call_may_change_caller_saved_registers_only() -> None:
    described = one(
        "push rbx\nmov rbx, rdi\ncall g\nmov [rbx], rax\nmov [rdi], rax\nmov [r11], rax\npop rbx\nret"
    )
    kinds = [item.value_source.kind for item in stores(described) if item.value_source is not None]
    assert kinds == ["argument", "unknown", "unknown"]


def test_arguments_of_calls() -> None:
    source = function(
        "f",
        "sub rsp, 0x18\nlea rsi, [rsp + 8]\nmov edx, 32\nlea rcx, [rip + table]\ncall g\nadd rsp, 0x18\nret",
    )
    call = site(analyse(source + ".data\n.zero 8\ntable: .quad 0\n")[0], "call")
    kinds = [argument.source.kind if argument is not None else None for argument in call.arguments]
    assert kinds[:4] == ["argument", "stack", "constant", "static"]
    second, third, fourth = call.arguments[1:4]
    assert second is not None
    assert third is not None
    assert fourth is not None
    assert (second.offset, third.source.number) == (-0x18 + 8, 32)
    assert fourth.source.address is not None
    assert (fourth.source.address.section, fourth.source.address.offset) == (".data", 8)


def test_noreturn_calls_end_their_block() -> None:
    described = one(
        "push rbx\ntest edi, edi\njne 1f\npop rbx\nret\n1:\ncall __stack_chk_fail\nmov [rsp], rax\nret"
    )
    assert site(described, "return").stack_height == 0
    assert any("no path from the entry" in problem for problem in described.problems)


def test_exception_fixups_are_control_flow() -> None:
    source = function("f", "push rbx\nmov rbx, rdi\n1:\nmov rax, [rsi]\nmov [rbx], rax\n2:\npop rbx\nret") + (
        '.section __ex_table,"a"\n.long 1b - ., 2b - ., 0\n'
    )
    described = analyse(source)[0]
    fixup = next(block for block in described.blocks if block.start == described.sites[-1].offset - 1)
    assert any(fixup.start in block.successors for block in described.blocks)
    assert site(described, "return").stack_height == 0
    assert not site(described, "store").probe.jump_optimizable


def test_jump_labels_lead_both_ways() -> None:
    source = function(
        "f", "1:\n.byte 0x0f, 0x1f, 0x44, 0, 0\nmov [rdi], rsi\nret\n2:\nmov [rdx], rsi\nret"
    ) + ('.section __jump_table,"aw"\n.long 1b - ., 2b - .\n.quad 0\n')
    described = analyse(source)[0]
    assert len(described.blocks[0].successors) == 2
    assert not described.problems
    assert [item.patched for item in described.sites] == [None] * 4
    assert described.patches[0].kind == "jump_label"


def test_pop_to_memory_computes_its_address_behind_the_pop() -> None:
    below, above = stores(one("push rbx\npop qword ptr [rsp - 0x10]\npush rbx\npop qword ptr [rsp + 8]\nret"))
    assert (below.frame_offset, above.frame_offset) == (-0x10, 8)


def test_padding_between_blocks_is_not_control_flow() -> None:
    described = one(
        "push rbx\ntest edi, edi\njne 1f\njmp 2f\n.balign 16, 0x90\n1:\nmov [rdi], rsi\n2:\npop rbx\nret"
    )
    assert not described.problems
    assert stores(described)[0].stack_height == 8
    assert site(described, "return").stack_height == 0
