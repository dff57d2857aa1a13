# SPDX-License-Identifier: Apache-2.0
"""Reads the text form of the intermediate representation (docs/ir.md has the grammar).

`parse_module` reads what `o2cc.ir.printer` writes; `parse_library` reads parts that are linked into modules:
maps, tables, functions, checks and hooks.  Both raise `DiagnosticError` with everything found wrong.

Codes: O2C0500 text that is not IR, O2C0501 a named constant that nobody gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from o2cc.diagnostics import SourceFile, Span, did_you_mean, error
from o2cc.ir import nodes as ir
from o2cc.ir.cursor import WORD, Cursor, Recover
from o2cc.ir.tokens import Kind

_NO_CONSTANTS: Mapping[str, int] = {}

_BINARY = {operator.value: operator for operator in ir.BinaryOperator}
_HELPERS = {kind.value: kind for kind in ir.HelperKind}
_VERDICTS = {verdict.value: verdict for verdict in ir.Verdict}
_SITE_KINDS = {kind.value: kind for kind in ir.SiteKind}
_HOOK_KINDS = {kind.value: kind for kind in ir.HookKind}
_MAP_KINDS = {kind.value: kind for kind in ir.MapKind}
_PARTS = ("module", "source", "map", "table", "function", "check", "hook", "site", "discharged")
_OPERATIONS = (
    *(
        "read",
        "select",
        "reg",
        "arg",
        "param",
        "symbol",
        "load",
        "fetch_add",
        "cmpxchg",
        "lookup",
        "call",
        "emit",
    ),
    *("delete", "update", "entry", "entry_fetch_add", "entry_cmpxchg"),
)
_TERMINATORS = ("br", "jump", "return", "verdict")


def parse_module(
    source: SourceFile, constants: Mapping[str, int] = _NO_CONSTANTS, *, own_spans: bool = False
) -> ir.Module:
    """A module from its text, with the spans that the text gives (``at``).

    `constants` gives named constants by their full name, ``{"offset(slab.slab_cache)": 8}``.  With `own_spans`,
    what has no span of its own gets the place in this text, so that a verifier can point at it.
    """
    parser = _Parser(source, constants, own_spans)
    module = parser.file()
    if parser.name is None and not parser.errors.has_errors:
        parser.errors.add(
            error(
                "O2C0500",
                "there is no `module` in this file",
                source.span(0, 0),
                help="begin with `module name { }`",
            )
        )
    parser.errors.raise_if_errors()
    return module


def parse_library(source: SourceFile, constants: Mapping[str, int] = _NO_CONSTANTS) -> ir.Module:
    """The parts in a library text as a module without identity, named after the source; no sites are allowed.

    Every instruction without a span of its own has its place in this text as span.
    """
    parser = _Parser(source, constants, own_spans=True)
    module = parser.file()
    if parser.name is not None or module.sites or module.discharged:
        spans = [s.span for s in module.sites] + [d.span for d in module.discharged]
        place = next(iter(spans), None) or source.span(0, 0)
        parser.errors.add(error("O2C0500", "a library has no module header and no sites", place))
    parser.errors.raise_if_errors()
    return module


class _Parser(Cursor):
    """Recursive descent; one method for each part, statement and instruction."""

    def __init__(self, source: SourceFile, constants: Mapping[str, int], own_spans: bool) -> None:
        super().__init__(source)
        self.name: str | None = None
        self._constants = constants
        self._own_spans = own_spans
        self._span_sources: dict[int, str] = {}

    # --- operands -----------------------------------------------------------------------------------------

    def _value(self) -> ir.Value:
        return ir.Value(self._text(Kind.VALUE, "a value such as `%a`")[1:])

    def _operand(self) -> ir.Operand:
        kind = self._kinds[self._at]
        if kind is Kind.VALUE:
            self._at += 1
            return ir.Value(self._texts[self._at - 1][1:])
        if kind is Kind.NUMBER:
            return ir.Constant(self._word_value("a number"))
        if kind is Kind.VARIABLE:
            self._at += 1
            return ir.Variable(self._texts[self._at - 1][1:])
        if kind is Kind.CONSTANT:
            return self._named_constant()
        raise self._fail(f"expected a value, a variable or a constant, found {self._shown()}")

    def _named_constant(self) -> ir.Constant:
        index = self._at
        name = " ".join(self._texts[index].split())
        self._at += 1
        if self._take("="):
            return ir.Constant(self._word_value("the constant's value"), name)
        if name not in self._constants:
            raise self._fail_at(
                index,
                f"nothing gives the constant `{name}`",
                did_you_mean(name, self._constants) or f"write its value: `{name}=0`",
                code="O2C0501",
            )
        return ir.Constant(self._constants[name] % WORD, name)

    def _dotted(self, what: str) -> tuple[str, str]:
        text = self._word(what)
        first, dot, second = text.partition(".")
        if not dot:
            raise self._fail_at(self._at - 1, f"expected {what}, found `{text}`")
        return first, second

    def _cell(self) -> tuple[str, ir.Operand, str]:
        table = self._word("a table")
        self._expect("[")
        index = self._operand()
        self._expect("]")
        self._expect(".")
        return table, index, self._word("a column")

    def _key(self) -> tuple[ir.Operand, ...]:
        self._expect(",")
        if self._peek("["):
            return self._listed("[", "]", self._operand)
        keys = [self._operand()]
        while self._take(","):
            keys.append(self._operand())
        return tuple(keys)

    def _comma_operand(self) -> ir.Operand:
        self._expect(",")
        return self._operand()

    # --- instructions -------------------------------------------------------------------------------------

    def _instruction(self) -> ir.Instruction:
        kind = self._kinds[self._at]
        if kind is Kind.VALUE:
            result = self._value()
            self._expect("=")
            return self._defining(result)
        if kind is Kind.VARIABLE:
            variable = ir.Variable(self._texts[self._at][1:])
            self._at += 1
            self._expect("=")
            return ir.Assign(variable, self._operand())
        if self._take("store"):
            cell = self._cell()
            self._expect("=")
            return ir.Store(*cell, self._operand())
        if self._take("entry"):
            entry = self._value()
            place = self._dotted("a field such as `objects.size`")
            self._expect("=")
            return ir.EntryStore(entry, *place, self._operand())
        raise self._fail(f"expected an instruction, found {self._shown()}")

    def _defining(self, result: ir.Value) -> ir.Instruction:
        word = self._word("an operation")
        if word in _BINARY:
            left = self._operand()
            return ir.Binary(result, _BINARY[word], left, self._comma_operand())
        if word in _HELPERS:
            return ir.Helper(result, _HELPERS[word])
        match word:
            case "read":
                size = self._number("a size")
                return ir.Read(result, size, self._operand())
            case "select":
                condition = self._operand()
                if_true = self._comma_operand()
                return ir.Select(result, condition, if_true, self._comma_operand())
            case "reg":
                return ir.Register(result, self._word("a register"))
            case "arg":
                return ir.Argument(result, self._number("an argument's number"))
            case "param":
                return ir.Parameter(result, self._word("a parameter"))
            case "symbol":
                return ir.Symbol(result, self._symbol_name("a kernel symbol"))
            case "load":
                return ir.Load(result, *self._cell())
            case "fetch_add":
                cell = self._cell()
                return ir.FetchAdd(result, *cell, self._comma_operand())
            case "cmpxchg":
                cell = self._cell()
                expected = self._comma_operand()
                return ir.CompareExchange(result, *cell, expected, self._comma_operand())
            case "lookup":
                map_name = self._word("a map")
                return ir.Lookup(result, map_name, self._key())
            case "call":
                function = self._word("a function")
                return ir.Call(result, function, self._listed("(", ")", self._operand))
            case "emit":
                map_name = self._word("a map")
                self._expect(",")
                return ir.Emit(result, map_name, self._listed("[", "]", self._operand))
            case "delete":
                map_name = self._word("a map")
                return ir.Delete(result, map_name, self._key())
            case "update":
                return self._update(result)
            case "entry":
                entry = self._value()
                return ir.EntryLoad(result, entry, *self._dotted("a field such as `objects.size`"))
            case "entry_fetch_add":
                entry = self._value()
                place = self._dotted("a field such as `objects.size`")
                return ir.EntryFetchAdd(result, entry, *place, self._comma_operand())
            case "entry_cmpxchg":
                entry = self._value()
                place = self._dotted("a field such as `objects.size`")
                expected = self._comma_operand()
                return ir.EntryCompareExchange(result, entry, *place, expected, self._comma_operand())
        near = did_you_mean(word, (*_BINARY, *_HELPERS, *_OPERATIONS))
        raise self._fail_at(self._at - 1, f"`{word}` is not an operation", near)

    def _update(self, result: ir.Value) -> ir.Instruction:
        map_name = self._word("a map")
        self._expect(",")
        key = self._listed("[", "]", self._operand)
        self._expect(",")
        fields = self._listed("[", "]", self._operand)
        no_replace = self._take(",")
        if no_replace:
            self._expect("noexist")
        return ir.Update(result, map_name, key, fields, no_replace)

    def _terminator(self) -> ir.Terminator:
        word = self._texts[self._at]
        self._at += 1
        if word == "br":
            condition = self._operand()
            self._expect(",")
            if_true = self._word("a block")
            self._expect(",")
            return ir.Branch(condition, if_true, self._word("a block"))
        if word == "jump":
            return ir.Jump(self._word("a block"))
        if word == "return":
            return ir.Return(self._operand())
        return ir.Decide(self._choice(_VERDICTS, "a verdict"))

    # --- blocks -------------------------------------------------------------------------------------------

    def _at_span(self) -> Span | None:
        if not self._take("at"):
            return None
        first = self._at
        number = self._number("the number of a source")
        self._expect(":")
        start = self._number("an offset")
        self._expect("..")
        end = self._number("an offset")
        if number not in self._span_sources:
            raise self._fail_at(first, f"there is no `source {number}` before this")
        if end < start:
            raise self._fail_at(first, "a span ends before it begins")
        return Span(self._span_sources[number], start, end)

    def _body(self) -> tuple[ir.Block, ...]:
        self._expect("{")
        blocks: list[ir.Block] = []
        while not self._take("}"):
            if self._kinds[self._at] is Kind.END:
                raise self._fail("this body has no closing `}`")
            blocks.append(self._block(is_first=not blocks))
        if not blocks:
            raise self._fail_at(self._at - 1, "a body needs a block")
        return tuple(blocks)

    def _block(self, *, is_first: bool) -> ir.Block:
        label_token = self._at
        name = "entry"
        if self._kinds[self._at] is Kind.NAME and self._texts[self._at + 1] == ":":
            name = self._texts[self._at]
            self._at += 2
        elif not is_first:
            first = self._at
            self.errors.add(
                error("O2C0500", f"expected a block's label, found {self._shown()}", self._token_span(first))
            )
            self._skip_line(first)
        instructions: list[ir.Instruction] = []
        spans: list[Span | None] = []
        terminator: ir.Terminator | None = None
        wrong = False
        while terminator is None:
            first = self._at
            if self._kinds[first] is Kind.END or self._peek("}") or self._texts[first + 1] == ":":
                if not wrong:
                    self.errors.add(
                        error(
                            "O2C0500",
                            f"block `{name}` does not end in a terminator",
                            self._token_span(label_token),
                        )
                    )
                terminator = ir.Decide(ir.Verdict.DENY)  # Never used: the error stands.
                break
            try:
                if self._texts[first] in _TERMINATORS:
                    terminator = self._terminator()
                else:
                    instruction = self._instruction()
                    span = self._span_from(first) if self._own_spans else None
                    spans.append(self._at_span() or span)
                    instructions.append(instruction)
            except Recover:
                wrong = True
                self._skip_line(first)
                if self._texts[first] in _TERMINATORS:
                    terminator = ir.Decide(ir.Verdict.DENY)
        kept = tuple(spans) if any(span is not None for span in spans) else ()
        return ir.Block(name, tuple(instructions), terminator, kept)

    # --- parts --------------------------------------------------------------------------------------------

    def file(self) -> ir.Module:
        """Every part of the file; parts that are wrong are left out, with errors."""
        identity: tuple[tuple[str, str], ...] = ()
        maps: list[ir.Map] = []
        tables: list[ir.Table] = []
        functions: list[ir.Function] = []
        checks: list[ir.Check] = []
        hooks: list[ir.Hook] = []
        sites: list[ir.Site] = []
        discharged: list[ir.Discharged] = []
        readers: dict[str, Callable[[int], None]] = {
            "map": lambda first: maps.append(self._map()),
            "table": lambda first: tables.append(self._table()),
            "function": lambda first: functions.append(self._function(first)),
            "check": lambda first: checks.append(self._check(first)),
            "hook": lambda first: hooks.append(self._hook(first)),
            "site": lambda first: sites.append(self._site(first)),
            "discharged": lambda first: discharged.append(self._discharged(first)),
        }
        while self._kinds[self._at] is not Kind.END:
            first = self._at
            word = self._texts[first]
            try:
                if word in readers and self._kinds[first] is Kind.NAME:
                    self._at += 1
                    readers[word](first)
                elif self._take("source"):
                    number = self._number("the number of a source")
                    self._span_sources[number] = self._string("the name of a source")
                elif self._take("module"):
                    if self.name is not None:
                        raise self._fail_at(first, "a file has one module")
                    self.name = self._symbol_name("the module's name")
                    identity = self._identity()
                else:
                    raise self._fail(
                        f"expected a part of a module, found {self._shown()}",
                        did_you_mean(word, _PARTS) or "one of " + ", ".join(f"`{part}`" for part in _PARTS),
                    )
            except Recover:
                self._skip_part(first, _PARTS)
        name = self.name if self.name is not None else self._source.name.rpartition("/")[2].partition(".")[0]
        return ir.Module(
            name,
            identity,
            tuple(maps),
            tuple(tables),
            tuple(functions),
            tuple(checks),
            tuple(sites),
            tuple(hooks),
            tuple(discharged),
        )

    def _identity(self) -> tuple[tuple[str, str], ...]:
        self._expect("{")
        pairs: list[tuple[str, str]] = []
        while not self._take("}"):
            key = self._symbol_name("the name of a property, or `}`")
            pairs.append((key, self._string("a value in quotes")))
        return tuple(pairs)

    def _own(self, span: Span | None, first: int) -> Span | None:
        return span or (self._span_from(first) if self._own_spans else None)

    def _map(self) -> ir.Map:
        name = self._word("the map's name")
        kind = self._choice(_MAP_KINDS, "a kind of map")
        key = self._listed("(", ")", lambda: self._word("a key's name"))
        self._expect("->")
        fields = self._listed("(", ")", lambda: self._word("a field's name"))
        self._expect("capacity")
        return ir.Map(name, kind, key, fields, self._word_or_constant("a capacity"))

    def _word_or_constant(self, what: str) -> int:
        if self._kinds[self._at] is Kind.CONSTANT:
            return self._named_constant().value
        return self._word_value(what)

    def _column(self) -> tuple[str, int]:
        return self._word("a column"), self._number("a column's size")

    def _table(self) -> ir.Table:
        name = self._word("the table's name")
        columns = self._listed("(", ")", self._column)
        self._expect("length")
        length = self._word_or_constant("a length")
        writable = self._take("writable")
        resizable = self._take("resizable")
        self._expect("{")
        rows: list[tuple[int, ...]] = []
        while not self._take("}"):
            first = self._at
            row = [self._word_or_constant("a number, or `}`")]
            while not self._peek("}") and not self._line_break(self._at - 1, self._at):
                row.append(self._word_or_constant("a number, or `}`"))
            if len(row) != len(columns):
                raise self._fail_at(
                    first,
                    f"this row of table `{name}` has {len(row)} numbers for {len(columns)} columns",
                    "write each row on a line of its own",
                )
            rows.append(tuple(row))
        return ir.Table(name, columns, tuple(rows), length, writable, resizable)

    def _function(self, first: int) -> ir.Function:
        name = self._word("the function's name")
        parameters = self._listed("(", ")", lambda: self._word("a parameter's name"))
        inline = self._take("inline")
        span = self._own(self._at_span(), first)
        return ir.Function(name, parameters, self._body(), span, inline)

    def _check(self, first: int) -> ir.Check:
        name = self._word("the check's name")
        span = self._own(self._at_span(), first)
        return ir.Check(name, self._body(), span)

    def _hook(self, first: int) -> ir.Hook:
        name = self._word("the hook's name")
        kind = self._choice(_HOOK_KINDS, "a kind of hook")
        target = self._symbol_name("what the hook is attached to")
        span = self._own(self._at_span(), first)
        return ir.Hook(name, kind, target, self._body(), span)

    def _place(self) -> tuple[str, int, ir.SiteKind]:
        function = self._symbol_name("a kernel function")
        self._expect("+")
        offset = self._number("an offset")
        return function, offset, self._choice(_SITE_KINDS, "a kind of site")

    def _site_parameter(self) -> tuple[str, int]:
        name = self._word("a parameter")
        self._expect("=")
        return name, self._word_or_constant("a number")

    def _site(self, first: int) -> ir.Site:
        number = self._number("the site's number")
        function, offset, kind = self._place()
        check = self._word("a check")
        parameters = self._listed("(", ")", self._site_parameter)
        probe = self._number("an offset") if self._take("probe") else None
        covered_by = self._number("the number of a site") if self._take("covered") else None
        span = self._at_span()
        note = self._string("a note in quotes") if self._take("note") else ""
        span = self._own(span, first)
        return ir.Site(number, function, offset, kind, check, parameters, span, probe, note, covered_by)

    def _discharged(self, first: int) -> ir.Discharged:
        function, offset, kind = self._place()
        reason = self._word("the reason")
        proof = self._string("the proof in quotes")
        premises: tuple[str, ...] = ()
        if self._take("premises"):
            premises = self._listed("(", ")", lambda: self._string("a premise in quotes"))
        span = self._own(self._at_span(), first)
        return ir.Discharged(function, offset, kind, reason, proof, premises, span)
