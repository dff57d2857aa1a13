# SPDX-License-Identifier: Apache-2.0
"""`test` blocks, type-checked: every address is an object of the test plus an offset, or a number.

A path whose last field is a struct or an array means its address; in `store` and `icall` any path to a field does.
Elsewhere a path to a field means the field's value: what `given` said, or zero.

Codes: O2C0202 unknown name, O2C0204 defined twice, O2C0206 unknown capability, O2C0210 unknown struct, O2C0211 unknown field, O2C0213
unknown function, O2C0260 state and capability disagree, O2C0261 `expect` without a step before, O2C0262 wrong number of
arguments, O2C0263 store of unknown size, O2C0264 value that a test cannot compute, O2C0265 `leave` without `enter`, O2C0266
function that is no gate, O2C0267 function that is no entry.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from o2cc.diagnostics import Label, Span, did_you_mean, error, warning
from o2cc.policy import model
from o2cc.policy.base_types import base_type
from o2cc.policy.capabilities import capability_named, fits
from o2cc.policy.context import Context
from o2cc.policy.expressions import Checker
from o2cc.policy.model import ObjectState, PolicyTest, TestStep, TestValue
from o2cc.policy.paths import Scope as ExpressionScope
from o2cc.policy.structs import pointer_to, value_type
from o2cc.policy.target import TargetCode
from o2cc.syntax import nodes

_MASK = (1 << 64) - 1
_FUNCTIONS = "`o2c show MODULE` lists the functions of the target, and those that it calls"


@dataclass
class _Object:
    """What the checker knows of an object of a test."""

    name: str
    struct: str | None
    size: int
    span: Span
    fields: dict[int, tuple[int, TestValue]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Evaluated:
    """A value, with the size of what it is the address of, where known."""

    value: TestValue
    target_size: int | None = None


class TestChecker:
    """Checks one test."""

    __test__ = False

    def __init__(
        self, context: Context, target: TargetCode, gates: Collection[str], entries: Collection[str]
    ) -> None:
        self.context = context
        self.target = target
        self.gates = gates
        self.entries = entries
        self.objects: dict[str, _Object] = {}
        self.numbers: dict[str, tuple[int, Span]] = {}
        self.steps: list[TestStep] = []
        self.entered = 0

    def check(self, test: nodes.Test) -> PolicyTest:
        """All steps of a test; steps with errors are left out."""
        pending = False
        for step in test.steps:
            if isinstance(step, nodes.ExpectStep):
                if not pending:
                    self._error("O2C0261", "there is no step before this to expect a verdict of", step.span)
                self.steps.append(model.Expect(step.outcome.value, step.span))
                pending = False
                continue
            checked = self._step(step)
            pending = not isinstance(step, nodes.GivenObject | nodes.GivenValue | nodes.PhaseStep)
            if checked is not None:
                self.steps.append(checked)
        if not any(isinstance(step, nodes.ExpectStep) for step in test.steps):
            self.context.collector.add(
                warning("O2C0261", "this test expects nothing", test.name.span, "it cannot fail")
            )
        return PolicyTest(test.name.text, tuple(self.steps), test.span)

    def _step(self, step: nodes.Step) -> TestStep | None:
        match step:
            case nodes.GivenObject():
                return self._given(step)
            case nodes.GivenValue():
                self._given_value(step)
                return None
            case nodes.StoreStep():
                return self._store(step)
            case nodes.CallStep():
                return self._call(step)
            case nodes.GateStep():
                name = step.function.text
                if self.context.has_target and name not in self.gates and name in self.target.callees:
                    self._error(
                        "O2C0266",
                        f"`{name}` is no gate of this policy",
                        step.function.span,
                        help=f"it may not be called; write `call {name}(...)` to expect that it is denied",
                    )
                return self._call(step)
            case nodes.IndirectCallStep():
                self._own_function(step.site.function)
                target = self._evaluate(step.target, as_address=True)
                if target is None:
                    return None
                return model.TestIndirectCall(
                    step.site.function.text, step.site.offset, target.value, step.span
                )
            case nodes.EnterStep():
                return self._enter(step)
            case nodes.LeaveStep():
                if self.entered == 0:
                    self._error("O2C0265", "no entry was entered that could be left", step.span)
                self.entered = max(0, self.entered - 1)
                return model.TestLeave(step.span)
            case nodes.PhaseStep():
                return model.TestPhase(step.phase.value, step.span)
            case nodes.ExpectStep():
                return None

    # --- what is given

    def _given(self, step: nodes.GivenObject) -> TestStep | None:
        made = self._typed(step)
        capability: str | None = None
        if step.capability is not None:
            found = capability_named(self.context, self.context.program.main, step.capability)
            if found is not None:
                capability = found.name
                if made is not None and made.struct is not None:
                    fits(self.context, found, pointer_to(made.struct, made.size), step.capability.span)
            if step.state is not ObjectState.HELD:
                self._error(
                    "O2C0260", f"an object that is {step.state} is not held as a capability", step.span
                )
        if made is None or not self._define(step.name):
            return None
        self.objects[made.name] = made
        for item in step.fields:
            self._field_value(made, item)
        number = self.context.types.number(made.struct) if made.struct is not None else None
        return model.GivenObject(
            name=made.name,
            struct=made.struct,
            type_id=number,
            size=made.size,
            state=step.state,
            capability=capability,
            fields=tuple((offset, size, value) for offset, (size, value) in sorted(made.fields.items())),
            span=step.span,
        )

    def _typed(self, step: nodes.GivenObject) -> _Object | None:
        type_ = step.type
        match type_:
            case nodes.StructType():
                struct = self.context.struct(type_)
                if struct is None:
                    return None
                return _Object(step.name.text, struct.name, struct.size, step.span)
            case nodes.BufferType():
                size = self._checker().constant(type_.size)
                if size is not None and not 0 < size < 1 << 32:
                    self._error("O2C0224", "a buffer has from 1 byte to 4 GiB", type_.size.span)
                    return None
                return None if size is None else _Object(step.name.text, None, size, step.span)
            case nodes.NamedType():
                base = base_type(type_.text)
                if base is None:
                    self._error("O2C0210", f"unknown type `{type_.text}`", type_.span)
                    return None
                return _Object(step.name.text, None, base.size, step.span)

    def _field_value(self, made: _Object, item: nodes.FieldValue) -> None:
        if made.struct is None:
            self._error("O2C0218", f"`{made.name}` has no fields", item.path.span)
            return
        place = self.context.field(made.struct, item.path.text, item.path.span)
        value = self._evaluate(item.value, as_address=False)
        if place is None or value is None:
            return
        if place.size not in (1, 2, 4, 8) or place.bitfield_size:
            self._error("O2C0264", f"`{item.path.text}` is not a number or a pointer", item.path.span)
            return
        made.fields[place.offset] = (place.size, value.value)

    def _given_value(self, step: nodes.GivenValue) -> None:
        value = self._evaluate(step.value, as_address=False)
        if value is None or not self._define(step.name):
            return
        if value.value.object is not None or value.value.symbol is not None:
            self._error("O2C0264", "a named value is a number", step.value.span)
            return
        self.numbers[step.name.text] = (value.value.offset, step.span)

    def _define(self, name: nodes.Name) -> bool:
        earlier: Span | None = None
        if name.text in self.objects:
            earlier = self.objects[name.text].span
        elif name.text in self.numbers:
            earlier = self.numbers[name.text][1]
        if earlier is None:
            return True
        self.context.collector.add(
            error(
                "O2C0204",
                f"`{name.text}` is defined twice",
                name.span,
                secondary=[Label(earlier, "first defined here")],
            )
        )
        return False

    # --- what is done

    def _store(self, step: nodes.StoreStep) -> TestStep | None:
        self._own_function(step.site.function)
        address = self._evaluate(step.address, as_address=True)
        size: int | None = None
        if step.size is not None:
            size = self._checker().constant(step.size)
            if size is None:
                return None
        elif address is not None:
            size = address.target_size
        if address is None:
            return None
        if size is None or not 0 < size < 1 << 32:
            self._error(
                "O2C0263",
                "the size of this store is not known",
                step.address.span,
                help="write `size 8` after it",
            )
            return None
        return model.TestStore(step.site.function.text, step.site.offset, address.value, size, step.span)

    def _call(self, step: nodes.CallStep | nodes.GateStep) -> TestStep | None:
        name = step.function.text
        if self.context.has_target and name not in self.target.callees and name not in self.target.functions:
            known = self.target.prototype(name) is not None
            self.context.collector.add(
                (warning if known else error)(
                    "O2C0213",
                    f"this code never calls `{name}` directly" if known else f"unknown function `{name}`",
                    step.function.span,
                    help=did_you_mean(name, self.target.callees) or _FUNCTIONS,
                )
            )
            if not known:
                return None
        arguments = self._arguments(name, step.arguments, step.span)
        result: str | None = None
        if step.result is not None and self._define(step.result):
            result = step.result.text
            prototype = self.target.prototype(name)
            returned = value_type(prototype.returns) if prototype is not None else None
            struct = returned.struct if returned is not None else None
            size = returned.pointee_size if returned is not None else None
            self.objects[result] = _Object(result, struct, size or 8, step.result.span)
        return None if arguments is None else model.TestCall(name, arguments, result, step.span)

    def _enter(self, step: nodes.EnterStep) -> TestStep | None:
        self.entered += 1
        if not self._own_function(step.function):
            return None
        if step.function.text not in self.entries:
            self._no_entry(step.function)
        arguments = self._arguments(step.function.text, step.arguments, step.span)
        if arguments is None:
            return None
        return model.TestEnter(step.function.text, arguments, step.span)

    def _no_entry(self, name: nodes.Name) -> None:
        """The kernel calls what it was given the address of, what is exported, and any function of its own."""
        function = self.target.functions[name.text]
        called = function.address_taken or function.exported or not self.target.is_module
        self.context.collector.add(
            (warning if called else error)(
                "O2C0267",
                f"`{name.text}` is no entry of this policy"
                if called
                else f"`{name.text}` is no entry: only the compartment itself calls it",
                name.span,
                help=f"what the kernel gives it is nobody's; `entry {name.text}(...)`, or `entries of struct T` for a table "
                "that it stands in, says what becomes of it"
                if called
                else "enter the function that calls it; `o2c show MODULE` lists those whose address is taken",
            )
        )

    def _arguments(
        self, function: str, written: tuple[nodes.Expression, ...], span: Span
    ) -> tuple[TestValue, ...] | None:
        prototype = self.target.prototype(function)
        count = len(prototype.parameters) if prototype is not None else 0
        if count and len(written) > count and prototype is not None and not prototype.variadic:
            self._error(
                "O2C0262",
                f"`{function}` has {count} parameter{'' if count == 1 else 's'}, not {len(written)}",
                span,
            )
        values = [self._evaluate(item, as_address=False) for item in written]
        if any(value is None for value in values):
            return None
        return tuple(value.value for value in values if value is not None)

    def _own_function(self, name: nodes.Name) -> bool:
        if name.text in self.target.functions or not self.context.has_target:
            return self.context.has_target
        self._error(
            "O2C0213",
            f"unknown function of this compartment `{name.text}`",
            name.span,
            help=did_you_mean(name.text, self.target.functions) or _FUNCTIONS,
        )
        return False

    # --- values

    def _checker(self) -> Checker:
        return Checker(self.context, ExpressionScope(self.context.program.main))

    def _evaluate(self, node: nodes.Expression, *, as_address: bool) -> _Evaluated | None:
        match node:
            case nodes.Path():
                return self._path(node, as_address=as_address)
            case nodes.Binary() if node.operator in (nodes.BinaryOperator.ADD, nodes.BinaryOperator.SUBTRACT):
                left = self._evaluate(node.left, as_address=as_address)
                right = self._evaluate(node.right, as_address=False)
                if left is None or right is None:
                    return None
                return self._sum(left.value, right.value, node)
            case _:
                number = self._checker().constant(node)
                return (
                    None if number is None else _Evaluated(TestValue(None, None, number & _MASK, node.span))
                )

    def _sum(self, left: TestValue, right: TestValue, node: nodes.Binary) -> _Evaluated | None:
        based = [value for value in (left, right) if value.object is not None or value.symbol is not None]
        subtracts = node.operator is nodes.BinaryOperator.SUBTRACT
        if len(based) > 1 or (subtracts and based == [right]):
            self._error("O2C0264", "a test cannot compute with two addresses", node.span)
            return None
        offset = left.offset - right.offset if subtracts else left.offset + right.offset
        base = based[0] if based else left
        return _Evaluated(TestValue(base.object, base.symbol, offset, node.span))

    def _path(self, node: nodes.Path, *, as_address: bool) -> _Evaluated | None:
        first, *rest = node.parts
        made = self.objects.get(first.text)
        if made is None:
            return self._other_name(node)
        base = TestValue(made.name, None, 0, node.span)
        if not rest:
            return _Evaluated(base, made.size if made.size in (1, 2, 4, 8) else None)
        if made.struct is None:
            self._error("O2C0218", f"`{made.name}` has no fields", rest[0].span)
            return None
        return self._field(made, tuple(rest), node, as_address)

    def _field(
        self, made: _Object, parts: tuple[nodes.Name, ...], node: nodes.Path, as_address: bool
    ) -> _Evaluated | None:
        """Walk fields; through a pointer only if `given` says where it leads."""
        assert made.struct is not None
        for length in range(len(parts), 0, -1):
            path = ".".join(part.text for part in parts[:length])
            place = self.context.table.find_field(made.struct, path)
            if place is None:
                continue
            rest = parts[length:]
            held = made.fields.get(place.offset)
            if not rest:
                aggregate = place.type.kind in ("struct", "union", "array")
                if as_address or aggregate:
                    size = None if aggregate else place.size
                    return _Evaluated(TestValue(made.name, None, place.offset, node.span), size)
                value = held[1] if held is not None else TestValue(None, None, 0, node.span)
                return _Evaluated(TestValue(value.object, value.symbol, value.offset, node.span))
            if place.type.kind == "pointer" and held is not None and held[1].object in self.objects:
                target = self.objects[held[1].object or ""]
                if target.struct is not None and held[1].offset == 0:
                    return self._field(target, rest, node, as_address)
            if place.type.kind == "pointer":
                self._error(
                    "O2C0264",
                    f"this test does not say where `{made.name}.{path}` points",
                    node.span,
                    help=f"give it a value: `{{ {path} = q }}`",
                )
                return None
            break
        self.context.field(made.struct, ".".join(part.text for part in parts), node.span)
        return None

    def _other_name(self, node: nodes.Path) -> _Evaluated | None:
        name = node.parts[0].text
        if len(node.parts) == 1:
            if name in self.numbers:
                return _Evaluated(TestValue(None, None, self.numbers[name][0] & _MASK, node.span))
            if name in self.target.functions or name in self.target.callees:
                return _Evaluated(TestValue(None, name, 0, node.span))
            description = self.context.description
            if description is not None and name in description.symbol_by_name:
                symbol = description.symbol_by_name[name]
                size = symbol.size if symbol.size in (1, 2, 4, 8) else None
                return _Evaluated(TestValue(None, name, 0, node.span), size)
            if not self.context.has_target:
                return None
        known = [*self.objects, *self.numbers]
        program = self.context.program
        if program.find(program.main, nodes.Const, node):
            number = self._checker().constant(node)
            return None if number is None else _Evaluated(TestValue(None, None, number & _MASK, node.span))
        self._error("O2C0202", f"unknown name `{name}`", node.parts[0].span, help=did_you_mean(name, known))
        return None

    def _error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.context.collector.add(error(code, message, span, help=help))
