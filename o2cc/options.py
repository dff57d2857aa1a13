# SPDX-License-Identifier: Apache-2.0
"""What a user can ask of the compiler, as data; the command line and the language server fill it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from o2cc.bpf.layout import Layout
from o2cc.diagnostics import Diagnostic


class Emit(StrEnum):
    """What the compiler writes."""

    OBJECT = "object"
    LLVM = "llvm"
    IR = "ir"
    CHECK = "check"

    @property
    def is_text(self) -> bool:
        """Whether it is text, which goes to the standard output unless a file is named."""
        return self in (Emit.LLVM, Emit.IR)


class Degrade(StrEnum):
    """The weaker enforcement that the user accepts by name where the target lacks the asked one."""

    REPORT = "report"
    KILL = "kill"


@dataclass(frozen=True)
class CompileOptions:
    """Options of one compilation. `kernel` is a release, the path of a description or of a module, or None: found out.
    `caching`: descriptions of modules' files are kept.

    `figures`: give `Compiled.stats`, for which the object is made whatever `emit` says.
    """

    kernel: str | None = None
    layout: Layout = Layout.SITE
    emit: Emit = Emit.OBJECT
    figures: bool = False
    degrade: Degrade | None = None
    passes: tuple[str, ...] | None = None  # None: the default pipeline
    search_path: tuple[str, ...] = ()  # directories of modules for `use`, before the standard library
    caching: bool = True
    outputs: tuple[str, ...] = ()  # what the caller will write, so that it is none of the inputs


@dataclass(frozen=True)
class Compiled:
    """Result of a compilation without errors: the output's bytes, figures if they were asked for, and warnings."""

    output: bytes
    stats: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
