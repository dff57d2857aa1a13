# SPDX-License-Identifier: Apache-2.0
"""Entries: functions of the compartment that the kernel calls.

`entry f(...)` names one.  `entries of struct T` means every own function that stands in a table of that type, and
every own function that a call hands to the kernel as a callback together with an object of that type (a timer's
function, for example).  What a library says of such a slot (`extern entry`) holds for all of them.

Codes: O2C0231 and O2C0232 ruled twice, O2C0240 not a function of the compartment, O2C0241 function that nothing can call, O2C0242 functions with a taken address that are no entries, O2C0243 no
such tables, O2C0244 no such slot.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from o2cc.diagnostics import Label, Span, did_you_mean, error, note, warning
from o2cc.policy import model
from o2cc.policy.clauses import ClauseChecker
from o2cc.policy.context import Context
from o2cc.policy.gates import gate_scope, written_parameters
from o2cc.policy.model import Action, Entry, Gate, Parameter, Requirement, Slot
from o2cc.policy.names import ParsedModule
from o2cc.policy.structs import value_type
from o2cc.policy.target import TargetCode
from o2cc.syntax import nodes

_NAMES_SHOWN = 8

# What the kernel's macros make for tracepoints (include/linux/tracepoint.h, include/trace/*.h).
_TRACING = (
    "__SCT__",
    "__bpf_trace_",
    "__traceiter_",
    "__probestub_",
    "trace_event_",
    "trace_raw_",
    "perf_trace_",
)


@dataclass
class _Draft:
    """An entry while rules add to it."""

    span: Span
    slots: list[Slot] = field(default_factory=list)
    parameters: tuple[Parameter, ...] = ()
    effects: list[model.Effect] = field(default_factory=list)
    requires: list[Requirement] = field(default_factory=list)
    action: Action | None = None


class EntryBuilder:
    """Gathers the entries of a policy."""

    def __init__(self, context: Context, target: TargetCode, action: Action) -> None:
        self.context = context
        self.target = target
        self.action = action
        self.drafts: dict[str, _Draft] = {}

    def build(
        self, entries: Iterable[nodes.Entry], tables: Iterable[nodes.Entries], gates: Sequence[Gate]
    ) -> tuple[Entry, ...]:
        """All entries, by name."""
        ruled: dict[str, nodes.Entry] = {}
        for entry in entries:
            first = ruled.setdefault(entry.function.text, entry)
            if first is entry:
                self._entry(entry)
            else:
                self._twice(
                    "O2C0232", f"entry `{entry.function.text}` is ruled twice", entry.function, first.function
                )
        listed: dict[nodes.OpsFields, nodes.OpsFields] = {}
        for rule in tables:
            for ops in rule.tables:
                earlier = listed.setdefault(nodes.without_spans(ops), ops)
                if earlier is ops:
                    self._ops(ops, gates)
                else:
                    self._twice("O2C0231", f"entries of `{ops.type.text}` are ruled twice", ops, earlier)
        return tuple(
            Entry(
                function=name,
                slots=tuple(draft.slots),
                parameters=draft.parameters,
                effects=tuple(draft.effects),
                requires=tuple(draft.requires),
                action=draft.action or self.action,
                span=draft.span,
            )
            for name, draft in sorted(self.drafts.items())
        )

    def note_uncovered(self, policy_span: Span) -> None:
        """Tell which functions the kernel might call although no rule says so: those in tables by table, since tables
        that only the code itself uses are common, the others by name."""
        uncovered = {
            name
            for name in self.target.address_taken
            if name not in self.drafts and not name.startswith(_TRACING)
        }
        in_tables: dict[str, set[str]] = {}
        for struct, slots in self.target.slots.items():
            functions = {function for _, _, function in slots} & uncovered
            if functions and struct != "module":
                in_tables[struct] = functions
        elsewhere = sorted(uncovered.difference(*(item[1] for item in self._all_slots())))
        notes = []
        if in_tables:
            tables = [f"`struct {struct}` ({len(in_tables[struct])})" for struct in sorted(in_tables)]
            notes.append(f"in tables of {_shortened(tables)}")
        if elsewhere:
            notes.append(_shortened([f"`{name}`" for name in elsewhere]))
        if notes:
            count = len(set(elsewhere).union(*in_tables.values()))
            self.context.collector.add(
                note(
                    "O2C0242",
                    f"{count} functions whose address is taken are no entries"
                    if count > 1
                    else "a function whose address is taken is no entry",
                    policy_span,
                    notes=notes,
                    help="those that the kernel calls need `entry f(...)` or `entries of struct T`",
                )
            )

    def _all_slots(self) -> Iterable[tuple[str, set[str]]]:
        """The functions in tables, by struct."""
        for struct, slots in self.target.slots.items():
            yield struct, {function for _, _, function in slots}

    # --- rules

    def _twice(self, code: str, message: str, later: nodes.Node, earlier: nodes.Node) -> None:
        make = error if code == "O2C0232" else warning
        self.context.collector.add(
            make(code, message, later.span, secondary=[Label(earlier.span, "first ruled here")])
        )

    def _entry(self, node: nodes.Entry) -> None:
        name = node.function.text
        if name not in self.target.functions:
            if self.context.has_target and not node.optional:
                self.context.collector.add(
                    error(
                        "O2C0240",
                        f"`{name}` is not a function of this compartment",
                        node.function.span,
                        help=did_you_mean(name, self.target.functions),
                    )
                )
            return
        function = self.target.functions[name]
        if self.target.is_module and not function.address_taken and not function.exported:
            self.context.collector.add(
                warning(
                    "O2C0241",
                    f"nothing outside can call `{name}`",
                    node.function.span,
                    "its address is never taken, and it is not exported",
                )
            )
        self._add(name, self.context.program.main, node.parameters, node.clauses, node.span, None)

    def _ops(self, ops: nodes.OpsFields, gates: Sequence[Gate]) -> None:
        struct = ops.type.name.text
        slots = self.target.slots.get(struct, ())
        callbacks = self._callbacks(struct, gates)
        if not slots and not callbacks:
            if self.context.has_target:
                known = {*self.target.slots, *self.context.table.struct_by_name}
                if struct not in known:
                    self.context.struct(ops.type)
                else:
                    self.context.collector.add(
                        warning(
                            "O2C0243",
                            f"this code has no table of type `{ops.type.text}`",
                            ops.span,
                            "this makes nothing an entry",
                            help=did_you_mean(struct, self.target.slots),
                        )
                    )
            return
        self._check_slot_names(ops)
        for member, table, function in slots:
            if not _selected(ops, member):
                continue
            extern = self._description_of(struct, member, function)
            slot = Slot(struct, member, table)
            if extern is None:
                self._add(function, self.context.program.main, None, (), ops.span, slot)
            else:
                self._add(function, extern[0], extern[1].parameters, extern[1].clauses, ops.span, slot)
        for function, entry_module, entry in callbacks:
            if entry is None:
                self._add(function, self.context.program.main, None, (), ops.span, None)
            else:
                self._add(function, entry_module, entry.parameters, entry.clauses, ops.span, None)

    def _description_of(
        self, struct: str, member: str, function: str
    ) -> tuple[ParsedModule, nodes.ExternEntry] | None:
        """What the program says of a slot; of several descriptions the one with the function's parameters."""
        described = self.context.program.table_entries.get((struct, member), [])
        prototype = self.target.prototype(function)
        if len(described) > 1 and prototype is not None:
            count = len(prototype.parameters)
            for module, entry in described:
                if not entry.parameters.variadic and len(entry.parameters.parameters) == count:
                    return module, entry
        return described[0] if described else None

    def _check_slot_names(self, ops: nodes.OpsFields) -> None:
        struct = ops.type.name.text
        if ops.fields is None or struct not in self.context.table.struct_by_name:
            return
        for path in (*ops.fields.fields, *ops.fields.excluded):
            if path.is_glob:
                continue
            place = self.context.field(struct, path.text, path.span)
            if place is not None and not place.type.is_function_pointer:
                self.context.collector.add(
                    error(
                        "O2C0244",
                        f"`{path.text}` of `struct {struct}` is not a function pointer",
                        path.span,
                        f"this is of type `{place.type}`",
                    )
                )

    def _callbacks(
        self, struct: str, gates: Sequence[Gate]
    ) -> list[tuple[str, ParsedModule, nodes.ExternEntry | None]]:
        """Own functions that calls hand over as callbacks along with a ``struct`` object."""
        found: dict[str, tuple[ParsedModule, nodes.ExternEntry | None]] = {}
        for gate in gates:
            for effect in gate.effects:
                if not isinstance(effect, model.StoresCallback):
                    continue
                if not isinstance(effect.function, model.ArgumentValue):
                    continue
                module, entry = self._entry_kind(effect)
                concerns = any(parameter.type.struct == struct for parameter in gate.parameters)
                if entry is not None:
                    concerns = concerns or any(
                        isinstance(parameter.type, nodes.StructType) and parameter.type.name.text == struct
                        for parameter in entry.parameters.parameters
                    )
                if not concerns:
                    continue
                for _, site in self.target.calls_of(gate.function):
                    function = self.target.function_argument(site, effect.function.index)
                    if function is not None:
                        found.setdefault(function, (module, entry))
        return [(name, module, entry) for name, (module, entry) in sorted(found.items())]

    def _entry_kind(self, effect: model.StoresCallback) -> tuple[ParsedModule, nodes.ExternEntry | None]:
        module = self.context.module_of(effect.span)
        if effect.entry is not None:
            defined = self.context.program.visible(module, nodes.ExternEntry).get(effect.entry)
            if defined is not None and isinstance(defined.node, nodes.ExternEntry):
                return defined.module, defined.node
        return module, None

    def _add(
        self,
        function: str,
        module: ParsedModule,
        parameters: nodes.Parameters | None,
        clauses: tuple[nodes.Clause, ...],
        span: Span,
        slot: Slot | None,
    ) -> None:
        draft = self.drafts.setdefault(function, _Draft(span))
        if slot is not None and slot not in draft.slots:
            draft.slots.append(slot)
        prototype = self.target.prototype(function)
        if parameters is None:
            own: tuple[Parameter, ...] | None = tuple(
                Parameter(item.name, value_type(item.type))
                for item in (prototype.parameters if prototype is not None else ())
            )
        else:
            own = written_parameters(self.context, function, parameters, prototype)
        if own is None:
            return
        checked = ClauseChecker(
            self.context, gate_scope(module, own, None), self.action, at_entry=True
        ).check(clauses)
        draft.parameters = draft.parameters or own
        draft.effects.extend(effect for effect in checked.effects if effect not in draft.effects)
        draft.requires.extend(item for item in checked.requires if item not in draft.requires)
        draft.action = draft.action or checked.action


def _selected(ops: nodes.OpsFields, member: str) -> bool:
    if ops.fields is None:
        return True
    inside = ops.fields.whole or any(fnmatch.fnmatchcase(member, path.text) for path in ops.fields.fields)
    return inside and not any(fnmatch.fnmatchcase(member, path.text) for path in ops.fields.excluded)


def _shortened(words: list[str]) -> str:
    more = len(words) - _NAMES_SHOWN
    return ", ".join(words[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
