# SPDX-License-Identifier: Apache-2.0
"""Check policies of tests: a made-up target, a made-up library, messages as text."""

from __future__ import annotations

from collections.abc import Iterable

from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile
from o2cc.kernel.description import Description
from o2cc.policy.checker import check
from o2cc.policy.model import CheckedPolicy
from o2cc.policy.names import ParsedModule
from o2cc.report.render import ErrorFormat, render
from o2cc.syntax.parser import parse

from .target import describe

LIBRARY = """\
// SPDX-License-Identifier: Apache-2.0
shared struct net
set dangerous = { kernel_write, "set_memory_*" }
set callbacks = { demo_kernel_callback }
const PAGE = 4 KiB
caps packet(s: struct sk_buff) { s whole  s.head[0 .. s.end + 16] }
caps socket(s: struct sock) {}
extern entry timer(t: struct timer_list) {}
extern entry struct demo_ops.open(sk) { gives sk as socket }
extern entry struct demo_ops.close(sk) { lends sk as socket until return }
extern fn kfree(object) frees object
extern fn __kmalloc(size, flags) allocates result[size]
extern fn memcpy(dst: pointer, src: pointer, n: size_t) writes dst[n] reads src[n]
extern fn kfree_skb(skb) takes skb as packet when skb.users.value == 1
extern fn alloc_skb(size) gives result as packet
extern fn send(sk, skb) { lends sk as socket  takes skb as packet when result == 0 }
extern fn init_timer_key(timer, func, ...) { writes timer whole  stores callback func as entry timer }
extern fn mod_timer(timer, expires) { writes timer whole  stores callback timer.function as entry timer }
extern fn printk(...) pure
"""

OTHER = """\
// SPDX-License-Identifier: Apache-2.0
set dangerous = { kfree }
caps packet(s: struct sk_buff) { s whole }
"""

LOOP = "use std.loop\n"


class Library:
    """Modules from texts."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.sources: dict[str, SourceFile] = {}

    def __call__(self, name: str) -> ParsedModule | None:
        if name not in self.texts:
            return None
        source = SourceFile(f"{name}.o2c", self.texts[name])
        self.sources[source.name] = source
        return ParsedModule(name, source, parse(source))

    def names(self) -> Iterable[str]:
        return self.texts


def library() -> Library:
    return Library({"std.demo": LIBRARY, "std.other": OTHER, "std.loop": LOOP})


def run(
    text: str, description: Description | None = None, *, bare: bool = False, compartment: str | None = None
) -> tuple[CheckedPolicy | None, tuple[Diagnostic, ...], dict[str, SourceFile]]:
    """Check a policy: the result (None after errors), the diagnostics, the sources."""
    source = SourceFile("policy.o2c", text)
    resolve = library()
    target = None if bare else (description or describe())
    try:
        policy, diagnostics = check(
            ParsedModule("", source, parse(source)), target, resolve, compartment=compartment
        )
    except DiagnosticError as failure:
        return None, failure.diagnostics, {source.name: source, **resolve.sources}
    return policy, diagnostics, {source.name: source, **resolve.sources}


def checked(text: str, description: Description | None = None) -> CheckedPolicy:
    """A policy that has no errors."""
    policy, diagnostics, sources = run(text, description)
    assert policy is not None, render(diagnostics, sources, ErrorFormat.TEXT)
    return policy


PRELUDE = "use std.demo\n"


def compartment(*rules: str, before: str = "", after: str = "") -> str:
    """A policy for the made-up target: with these rules, and what every policy needs."""
    body = "\n".join(f"    {rule}" for rule in rules)
    return (
        f'{PRELUDE}{before}compartment demo {{\n    code modules "demo"\n    on violation report\n'
        f"    call imports except std.demo.dangerous\n{body}\n}}\n{after}"
    )
