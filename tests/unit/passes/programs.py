# SPDX-License-Identifier: Apache-2.0
"""Generates valid modules that use every kind of instruction, for tests of whatever takes modules."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from o2cc.ir import nodes as ir

MAPS = (
    ir.Map("objects", ir.MapKind.HASH, ("base",), ("size", "type"), 3),
    ir.Map("pairs", ir.MapKind.LRU_HASH, ("a", "b"), ("word",), 2),
    ir.Map("events", ir.MapKind.RING_BUFFER, (), ("one", "two"), 4096),
)
TABLES = (
    ir.Table("fixed", (("small", 1), ("word", 8)), ((1, 2**63), (255, 7), (0, 0)), 5),
    ir.Table("state", (("count", 8), ("half", 4)), ((3, 2**32 - 1),), 3, writable=True),
)
CONSTANTS = (0, 1, 2, 3, 8, 16, 63, 64, 255, 4096, 2**32 - 1, 2**63, 2**64 - 1, 2**64 - 4096)


@dataclass
class _Body:
    """A body in the making: a chain of diamonds and counted loops, so that the verifier accepts it."""

    choose: random.Random
    kind: str
    callees: list[str]
    known: list[str]
    blocks: list[ir.Block] = field(default_factory=list)
    name: str = "entry"
    code: list[ir.Instruction] = field(default_factory=list)
    values: int = 0
    labels: int = 0
    quiet: bool = False

    def fresh(self) -> ir.Value:
        self.values += 1
        return ir.Value(f"v{self.values}")

    def label(self) -> str:
        self.labels += 1
        return f"b{self.labels}"

    def operand(self) -> ir.Operand:
        pick = self.choose.random()
        if pick < 0.55 and self.known:
            return ir.Value(self.choose.choice(self.known))
        if pick < 0.7:
            return ir.Variable(self.choose.choice("xy"))
        return ir.Constant(self.choose.choice(CONSTANTS))

    def end(self, terminator: ir.Terminator, following: str) -> None:
        self.blocks.append(ir.Block(self.name, tuple(self.code), terminator))
        self.name, self.code = following, []

    def define(self, instruction: ir.Instruction) -> None:
        self.code.append(instruction)
        result = getattr(instruction, "result", None)
        if result is not None:
            self.known.append(result.name)

    def pattern(self) -> None:
        """An expression over an expression, with a variable that may change in between."""
        first, second = self.fresh(), self.fresh()
        operator = self.choose.choice([*_COMPARISONS, ir.BinaryOperator.ADD, ir.BinaryOperator.AND])
        self.define(ir.Binary(first, operator, self.operand(), self.operand()))
        if self.choose.random() < 0.5:
            self.code.append(ir.Assign(ir.Variable(self.choose.choice("xy")), self.operand()))
        if operator in _COMPARISONS:
            outer = self.choose.choice([ir.BinaryOperator.EQ, ir.BinaryOperator.NE])
            self.define(ir.Binary(second, outer, first, ir.Constant(0)))
        else:
            self.define(ir.Binary(second, operator, first, ir.Constant(self.choose.choice(CONSTANTS))))

    def instruction(self) -> None:
        choose, new, operand = self.choose, self.fresh, self.operand

        def row() -> ir.Operand:
            return choose.choice([operand(), ir.Constant(choose.randint(0, 6))])

        def load() -> ir.Instruction:
            table, column = choose.choice(
                [("fixed", "small"), ("fixed", "word"), ("state", "count"), ("state", "half")]
            )
            return ir.Load(new(), table, row(), column)

        def place() -> tuple[str, ir.Operand, str]:
            return "state", ir.Constant(choose.randint(0, 3)), choose.choice(["count", "half"])

        quiet: list[Callable[[], ir.Instruction]] = [
            *[lambda: ir.Binary(new(), choose.choice(list(ir.BinaryOperator)), operand(), operand())] * 12,
            lambda: ir.Assign(ir.Variable(choose.choice("xy")), operand()),
        ]
        if self.callees:
            quiet += [lambda: ir.Call(new(), choose.choice(self.callees), (operand(), operand()))] * 2
        others: list[Callable[[], ir.Instruction]] = [
            lambda: ir.Select(new(), operand(), operand(), operand()),
            lambda: ir.Read(new(), choose.choice([1, 2, 4, 8]), operand()),
            lambda: ir.Symbol(new(), choose.choice(["known", "absent"])),
            load,
            lambda: ir.Store(*place(), operand()),
            lambda: ir.FetchAdd(new(), *place(), operand()),
            lambda: ir.CompareExchange(new(), *place()[:2], "count", operand(), operand()),
            lambda: ir.Update(new(), "objects", (operand(),), (operand(), operand()), choose.random() < 0.5),
            lambda: ir.Update(new(), "pairs", (operand(), operand()), (operand(),)),
            lambda: ir.Delete(new(), "objects", (operand(),)),
            lambda: ir.Helper(new(), ir.HelperKind.NOW),
            lambda: ir.Emit(new(), "events", (operand(), operand())),
        ]
        if self.kind == "check":
            others += [lambda: ir.Register(new(), choose.choice(["rbx", "rsp"]))] * 3
            others += [lambda: ir.Parameter(new(), choose.choice(["size", "displacement"]))] * 3
        if self.kind == "hook":
            others += [lambda: ir.Argument(new(), choose.randint(0, 2))] * 3
        self.define(choose.choice(quiet if self.quiet else [*quiet, *others])())

    def straight(self) -> None:
        for _ in range(self.choose.randint(0, 5)):
            self.instruction()

    def diamond(self) -> None:
        yes, no, after = self.label(), self.label(), self.label()
        condition: ir.Operand = self.operand()
        if self.choose.random() < 0.5:
            test = self.fresh()
            self.define(ir.Binary(test, self.choose.choice(_COMPARISONS), self.operand(), self.operand()))
            condition = test
        before = len(self.known)
        self.end(ir.Branch(condition, yes, no), yes)
        self.straight()
        del self.known[before:]
        self.end(ir.Jump(after), no)
        self.straight()
        del self.known[before:]
        self.end(ir.Jump(after), after)

    def lookup(self) -> None:
        entry, found, after = self.fresh(), self.label(), self.label()
        self.code.append(ir.Lookup(entry, "objects", (self.operand(),)))
        before = len(self.known)
        self.end(ir.Branch(entry, found, after), found)
        word = self.choose.choice(["size", "type"])
        self.define(ir.EntryLoad(self.fresh(), entry, "objects", word))
        self.code.append(ir.EntryStore(entry, "objects", word, self.operand()))
        self.define(ir.EntryFetchAdd(self.fresh(), entry, "objects", word, self.operand()))
        change = (self.operand(), self.operand())
        self.define(ir.EntryCompareExchange(self.fresh(), entry, "objects", word, *change))
        self.straight()
        del self.known[before:]
        self.end(ir.Jump(after), after)

    def loop(self) -> None:
        head, body, after = self.label(), self.label(), self.label()
        counter = ir.Variable(f"i{self.labels}")
        self.code.append(ir.Assign(counter, ir.Constant(0)))
        self.end(ir.Jump(head), head)
        more = self.fresh()
        self.code.append(
            ir.Binary(more, ir.BinaryOperator.ULT, counter, ir.Constant(self.choose.randint(0, 4)))
        )
        before = len(self.known)
        self.end(ir.Branch(more, body, after), body)
        self.straight()
        del self.known[before:]
        step = self.fresh()
        self.code.append(ir.Binary(step, ir.BinaryOperator.ADD, counter, ir.Constant(1)))
        self.code.append(ir.Assign(counter, step))
        self.end(ir.Jump(head), after)

    def build(self) -> tuple[ir.Block, ...]:
        self.straight()
        for _ in range(self.choose.randint(0, 4)):
            steps = [self.diamond, self.loop, self.pattern, self.pattern]
            self.choose.choice(steps if self.quiet else [*steps, self.lookup])()
            self.straight()
        if self.kind == "check" or (self.kind == "function" and self.choose.random() < 0.3):
            self.end(ir.Decide(self.choose.choice(list(ir.Verdict))), "")
        else:
            self.end(ir.Return(self.operand()), "")
        if self.choose.random() < 0.3:
            self.blocks.append(ir.Block("nowhere", (), ir.Jump("entry")))
        return tuple(self.blocks)


_COMPARISONS = [o for o in ir.BinaryOperator if o.value in ("eq", "ne", "ult", "uge", "slt", "sge")]


def random_module(choose: random.Random) -> ir.Module:
    """Functions f0, f1, f2 of two parameters (each may call the ones before), checks c0 and c1, hook h0."""
    functions: list[ir.Function] = []
    for number in range(3):
        names = [function.name for function in functions]
        body = _Body(choose, "function", names, ["a", "b"], quiet=choose.random() < 0.4)
        functions.append(ir.Function(f"f{number}", ("a", "b"), body.build(), None, choose.random() < 0.2))
    names = [function.name for function in functions]
    checks = tuple(ir.Check(f"c{number}", _Body(choose, "check", names, []).build()) for number in range(2))
    hook = ir.Hook("h0", ir.HookKind.RAW_TRACEPOINT, "kfree", _Body(choose, "hook", names, []).build())
    given = (("displacement", 2**64 - 8), ("size", 8))
    sites = tuple(
        ir.Site(number, f"func{number}", 4 * number, ir.SiteKind.STORE, check.name, given, None, None, "")
        for number, check in enumerate(checks)
    )
    return ir.Module("m", (("release", "6.1"),), MAPS, TABLES, tuple(functions), checks, sites, (hook,))
