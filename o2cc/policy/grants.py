# SPDX-License-Identifier: Apache-2.0
"""`write` rules to grants: fields to byte ranges, reasons from comments, and what is too powerful to grant by accident.

Codes: O2C0211 unknown field, O2C0212 bit field granted without those that share its bytes, O2C0214 unknown symbol,
O2C0215 symbol that cannot be written, O2C0217 pattern that fits
nothing, O2C0218 not a pointer, O2C0230 whole struct with powerful members that are not named,
O2C0237 field or pattern that covers such members, O2C0239 grant of what is the compartment's own.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from o2cc.diagnostics import Diagnostic, Span, did_you_mean, error, note, warning
from o2cc.kernel.description import Symbol
from o2cc.kernel.type_table import FieldPlace
from o2cc.policy.context import Context
from o2cc.policy.expressions import Checker
from o2cc.policy.folding import constant, subtract
from o2cc.policy.model import (
    Action,
    BehindGrant,
    Expr,
    Grant,
    PernetGrant,
    Scope,
    StructGrant,
    SymbolGrant,
)
from o2cc.policy.paths import Scope as ExpressionScope
from o2cc.policy.places import unknown_length
from o2cc.policy.ranges import Range, covers, intersect, normalize
from o2cc.policy.ranges import subtract as subtract_ranges
from o2cc.policy.reasons import Reasons
from o2cc.policy.structs import PowerfulMember, leaves, powerful_members, value_type
from o2cc.syntax import nodes

_WORDS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class NamedRange:
    """A member that a field set names, resolved."""

    path: str
    start: int
    end: int
    exact: bool
    span: Span


@dataclass(frozen=True)
class FieldRanges:
    """What a field set grants."""

    ranges: tuple[Range, ...]
    fields: tuple[str, ...]
    whole: bool


class GrantBuilder:
    """Builds grants from `write` rules."""

    def __init__(self, context: Context, reasons: Reasons) -> None:
        self.context = context
        self.reasons = reasons

    def build(
        self,
        rule: nodes.WriteStruct | nodes.WriteBehind | nodes.WritePernet | nodes.WriteSymbols,
        scope: Scope | None,
        action: Action,
    ) -> list[Grant]:
        """The grants of one rule; empty after a diagnostic."""
        match rule:
            case nodes.WriteStruct():
                grant = self._struct(rule, scope, action)
                return [] if grant is None else [grant]
            case nodes.WriteBehind():
                return self._behind(rule, scope, action)
            case nodes.WritePernet():
                pernet = self._pernet(rule, scope, action)
                return [] if pernet is None else [pernet]
            case nodes.WriteSymbols():
                return self._symbols(rule, scope, action)

    # --- structs

    def _struct(self, rule: nodes.WriteStruct, scope: Scope | None, action: Action) -> StructGrant | None:
        struct = self.context.struct(rule.type)
        if struct is None:
            return None
        found = self.field_ranges(struct.name, rule.fields, rule.span)
        if found is None:
            return None
        self.context.granted_structs.add(struct.name)
        return StructGrant(
            struct=struct.name,
            type_id=self.context.types.number(struct.name),
            ranges=found.ranges,
            fields=found.fields,
            whole=found.whole,
            scope=scope,
            action=action,
            span=rule.span,
            reason=self.reasons.of(rule.span),
        )

    def field_ranges(self, struct: str, fields: nodes.FieldSet | None, span: Span) -> FieldRanges | None:
        """The bytes that a field set names; no field set means whole.  None after an error."""
        size = self.context.table.struct_by_name[struct].size
        whole = fields is None or fields.whole
        named: list[NamedRange] = []
        removed: list[NamedRange] = []
        good = True
        for path in fields.fields if fields is not None else ():
            members = self._expand(struct, path)
            good = good and members is not None
            named.extend(members or ())
        for path in fields.excluded if fields is not None else ():
            members = self._expand(struct, path)
            good = good and members is not None
            removed.extend(members or ())
        if not good:
            return None
        self._check_bit_fields(struct, named, whole)
        inside = [(item.start, item.end) for item in named]
        if whole:
            inside = [(0, size)]
        ranges = subtract_ranges(inside, [(item.start, item.end) for item in removed])
        for item in removed:
            if not intersect(inside, [(item.start, item.end)]):
                self.context.collector.add(
                    warning("O2C0233", f"`{item.path}` is not granted here anyway", item.span)
                )
        if not ranges:
            self.context.collector.add(
                warning("O2C0233", "this rule grants nothing", span, "no field is left")
            )
        self._check_power(struct, ranges, named, removed, whole, fields.span if fields else span)
        return FieldRanges(ranges, tuple(item.path for item in named), whole)

    def _expand(self, struct: str, path: nodes.FieldPath) -> list[NamedRange] | None:
        """The members that a path with patterns names; None after an error."""
        if path.optional and self.context.table.find_field(struct, path.text) is None and not path.is_glob:
            return []
        if not path.is_glob:
            place = self.context.field(struct, path.text, path.span)
            if place is None:
                return None
            return [NamedRange(path.text, *_bytes(place), True, path.span)]
        found = [
            NamedRange(text, *_bytes(place), False, path.span)
            for text, place in _match(self.context, struct, "", path.parts)
        ]
        if not found and self.context.has_target and not path.optional:
            self.context.collector.add(
                warning(
                    "O2C0217",
                    f"no field of `struct {struct}` matches `{path.text}`",
                    path.span,
                    "this grants nothing in this kernel",
                )
            )
        return found

    def _check_bit_fields(self, struct: str, named: list[NamedRange], whole: bool) -> None:
        """Refuse bit fields whose bytes hold others that are not named."""
        if whole:
            return
        names = {item.path for item in named}
        covered = [(item.start, item.end) for item in named if not self._is_bit_field(struct, item.path)]
        for item in named:
            if not item.exact or not self._is_bit_field(struct, item.path):
                continue
            sharing = [
                path
                for path, offset, _, bits in leaves(self.context.table, struct)
                if bits
                and path not in names
                and not covers(covered, offset, offset + 1)
                and item.start <= offset < item.end
            ]
            if sharing:
                self.context.collector.add(
                    error(
                        "O2C0212",
                        f"bit field `{item.path}` shares its bytes with others",
                        item.span,
                        f"a store writes {_listing(sharing)} as well",
                        help="name these too, if all of them may be written",
                    )
                )

    def _is_bit_field(self, struct: str, path: str) -> bool:
        place = self.context.table.find_field(struct, path)
        return place is not None and place.bitfield_size > 0

    def _check_power(
        self,
        struct: str,
        ranges: tuple[Range, ...],
        named: list[NamedRange],
        removed: list[NamedRange],
        whole: bool,
        span: Span,
    ) -> None:
        """Refuse a whole struct, and warn of a wide field, that covers powerful members nobody named."""
        exact = {item.path for item in named if item.exact}
        unnamed = [
            member
            for member in powerful_members(self.context.table, struct)
            if member.path not in exact
            and intersect(ranges, [(member.offset, member.offset + member.size)])
            and not any(item.start <= member.offset < item.end for item in removed)
        ]
        if whole:
            if unnamed:
                self.context.collector.add(_too_powerful(struct, unnamed, span))
            return
        for item in named:
            self._warn_of_power(
                item, [member for member in unnamed if item.start <= member.offset < item.end]
            )

    def _warn_of_power(self, item: NamedRange, covered: list[PowerfulMember]) -> None:
        if covered:
            first = covered[0]
            itself = first.path == item.path
            self.context.collector.add(
                warning(
                    "O2C0237",
                    f"`{item.path}` is a {first.why}"
                    if itself
                    else f"`{item.path}` holds the {first.why} `{first.path}`",
                    item.span,
                    "matched by this pattern"
                    if itself
                    else f"this grants {_listing([member.path for member in covered])}",
                    help="name what is needed of it, or take it out with `except`",
                )
            )

    # --- behind pointers

    def _behind(self, rule: nodes.WriteBehind, scope: Scope | None, action: Action) -> list[Grant]:
        struct = self.context.struct(rule.type)
        if struct is None:
            return []
        grants: list[Grant] = []
        checker = Checker(self.context, ExpressionScope(self.context.program.main, implicit=struct.name))
        for behind in rule.ranges:
            place = self.context.field(struct.name, behind.field.text, behind.field.span)
            if place is None:
                continue
            type_ = value_type(place.type)
            if place.type.kind != "pointer" or place.type.is_function_pointer:
                self.context.collector.add(
                    error(
                        "O2C0218",
                        f"`{behind.field.text}` is not a pointer to data",
                        behind.field.span,
                        f"this is of type `{place.type}`",
                    )
                )
                continue
            extent = self._behind_extent(checker, behind, type_.struct, type_.pointee_size)
            if extent is None:
                continue
            grants.append(
                BehindGrant(
                    struct=struct.name,
                    type_id=self.context.types.number(struct.name),
                    field=behind.field.text,
                    offset=place.offset,
                    start=extent[0],
                    length=extent[1],
                    pointee=type_.struct,
                    scope=scope,
                    action=action,
                    span=behind.span,
                    reason=self.reasons.of(behind.span) or self.reasons.of(rule.span),
                )
            )
        return grants

    def _behind_extent(
        self, checker: Checker, behind: nodes.Behind, pointee: str | None, size: int | None
    ) -> tuple[Expr, Expr] | None:
        zero = constant(0, behind.span)
        match behind.extent:
            case None:
                if size is None:
                    self.context.collector.add(unknown_length(behind.field.text, behind.span))
                    return None
                if pointee is not None:
                    powerful = powerful_members(self.context.table, pointee)
                    if powerful:
                        self.context.collector.add(
                            _too_powerful(pointee, list(powerful), behind.span, behind=True)
                        )
                        return None
                return zero, constant(size, behind.span)
            case nodes.Length():
                length = checker.length(behind.extent.size)
                return None if length is None else (zero, length)
            case nodes.Range():
                start = checker.length(behind.extent.start)
                end = checker.length(behind.extent.end)
                if start is None or end is None:
                    return None
                return start, subtract(end, start, behind.span)

    # --- variables

    def _pernet(self, rule: nodes.WritePernet, scope: Scope | None, action: Action) -> PernetGrant | None:
        description = self.context.description
        if description is not None:
            known = description.symbol_by_name
            if rule.id.text not in known and rule.id.text not in description.imports:
                self._unknown_symbol(rule.id.text, rule.id.span, [*known])
                return None
        ranges: tuple[Range, ...] = ()
        struct_name: str | None = None
        if rule.type is not None:
            struct = self.context.struct(rule.type)
            if struct is None:
                return None
            struct_name = struct.name
            if rule.fields is None:
                ranges = ((0, struct.size),)
            else:
                found = self.field_ranges(struct.name, rule.fields, rule.span)
                if found is None:
                    return None
                ranges = found.ranges
        return PernetGrant(
            rule.id.text, struct_name, ranges, scope, action, rule.span, self.reasons.of(rule.span)
        )

    def _symbols(self, rule: nodes.WriteSymbols, scope: Scope | None, action: Action) -> list[Grant]:
        description = self.context.description
        if description is None:
            return []
        grants: list[Grant] = []
        removed: dict[str, list[Range]] = {}
        for path in rule.excluded:
            for symbol, ranges in self._symbol_ranges(path):
                removed.setdefault(symbol.name, []).extend(ranges)
        for path in rule.symbols:
            for symbol, ranges in self._symbol_ranges(path):
                if not self._check_writable(symbol, path):
                    continue
                left = subtract_ranges(ranges, removed.get(symbol.name, []))
                grants.extend(
                    SymbolGrant(
                        symbol.name,
                        start,
                        end - start,
                        scope,
                        action,
                        path.span,
                        self.reasons.of(path.span) or self.reasons.of(rule.span),
                    )
                    for start, end in left
                )
        return grants

    def _symbol_ranges(self, path: nodes.FieldPath) -> list[tuple[Symbol, list[Range]]]:
        """The symbols and byte ranges that `sym`, `sym_*` or `sym.field.*` names."""
        assert self.context.description is not None
        known = self.context.description.symbol_by_name
        first, *fields = path.parts
        matched = [
            symbol
            for name, symbol in known.items()
            if symbol.is_object and fnmatch.fnmatchcase(name, first.text)
        ]
        if not matched and path.optional:
            return []
        if not matched:
            self._unknown_symbol(first.text, first.span, [n for n, s in known.items() if s.is_object])
            return []
        result = []
        for symbol in matched:
            if not fields:
                result.append((symbol, [(0, symbol.size)]))
                continue
            struct = symbol.type.name if symbol.type is not None and symbol.type.kind == "struct" else None
            if struct is None:
                self.context.collector.add(
                    error(
                        "O2C0218",
                        f"`{symbol.name}` has no fields",
                        fields[0].span,
                        f"this is of type `{symbol.type}`" if symbol.type else "its type is not known",
                    )
                )
                continue
            members = self._expand(struct, nodes.FieldPath(fields[0].span.to(fields[-1].span), tuple(fields)))
            result.append((symbol, list(normalize((m.start, m.end) for m in members or ()))))
        return result

    def _check_writable(self, symbol: Symbol, path: nodes.FieldPath) -> bool:
        assert self.context.description is not None
        section = self.context.description.section_by_name.get(symbol.section)
        if section is None:
            return True
        why = None
        if not section.writable:
            why = f"it lies in `{section.name}`, which is read-only"
        elif section.after_init_readonly:
            why = f"it lies in `{section.name}`, which is read-only after initialization"
        if why is not None:
            self.context.collector.add(error("O2C0215", f"`{symbol.name}` cannot be written", path.span, why))
            return False
        if self.context.description.target.kind == "module":
            self.context.collector.add(
                note(
                    "O2C0239",
                    f"`{symbol.name}` is the compartment's own data",
                    path.span,
                    "writable without this rule",
                )
            )
        return True

    def _unknown_symbol(self, name: str, span: Span, known: list[str]) -> None:
        assert self.context.description is not None
        imported = name in self.context.description.imports
        self.context.collector.add(
            error(
                "O2C0214",
                f"the size of kernel symbol `{name}` is not known"
                if imported
                else f"unknown symbol `{name}`",
                span,
                help="grant the struct that it is, with `write struct`"
                if imported
                else did_you_mean(name, known)
                or "the description knows what the code refers to, as `o2c show` prints it; another object of a known "
                "type is granted with `write struct`",
            )
        )


def _bytes(place: FieldPlace) -> tuple[int, int]:
    return place.offset, place.offset + place.size


def _match(
    context: Context, struct: str, prefix: str, parts: tuple[nodes.Name, ...]
) -> list[tuple[str, FieldPlace]]:
    """Members whose path fits the pattern; places are relative to the outermost struct."""
    found: list[tuple[str, FieldPlace]] = []
    _match_into(context, struct, struct, prefix, parts, found)
    return found


def _match_into(
    context: Context,
    outer: str,
    struct: str,
    prefix: str,
    parts: tuple[nodes.Name, ...],
    found: list[tuple[str, FieldPlace]],
) -> None:
    part, *rest = parts
    for name in context.table.field_names(struct):
        if not fnmatch.fnmatchcase(name, part.text):
            continue
        text = f"{prefix}{name}"
        place = context.table.find_field(outer, text)
        if place is None:
            continue
        if not rest:
            found.append((text, place))
        elif place.type.kind in ("struct", "union") and place.type.name is not None:
            _match_into(context, outer, place.type.name, f"{text}.", tuple(rest), found)


def _too_powerful(
    struct: str, members: list[PowerfulMember], span: Span, *, behind: bool = False
) -> Diagnostic:
    names = [member.path for member in members]
    kinds = sorted({member.why for member in members})
    remedy = (
        f"grant fields of it with `write struct {struct} {{ ... }}`"
        if behind
        else "name those that must be written, and take the others out: "
        f"`{{ whole }} except {{ {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} }}`"
    )
    return error(
        "O2C0230",
        f"`struct {struct}` holds {' and '.join(_plural(kind) for kind in kinds)} that are not named",
        span,
        f"this would grant {_listing(names)}",
        help=remedy,
    )


def _plural(kind: str) -> str:
    return {"pointer to a table of functions": "pointers to tables of functions"}.get(kind, f"{kind}s")


def _listing(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_WORDS_SHOWN])
    more = len(names) - _WORDS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
