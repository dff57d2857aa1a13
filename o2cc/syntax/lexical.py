# SPDX-License-Identifier: Apache-2.0
"""What can be said of a source before its grammar: size, characters, strings, comments, nesting.

The parser reads the *repaired* text, which has the same length as the source and in which everything
that was diagnosed here is replaced by something harmless, so that one mistake gives one message.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from o2cc.diagnostics import Collector, DiagnosticError, SourceFile, error
from o2cc.syntax.nodes import Comment

MAX_SOURCE_CHARACTERS = 1 << 20
MAX_NESTING = 64
MAX_PROBLEMS = 50

_TOKEN = re.compile(
    r"""
    (?P<line_comment>//[^\n]*)
  | (?P<block_comment>/\*.*?\*/)
  | (?P<open_comment>/\*)
  | (?P<string>"[^"\n]*")
  | (?P<open_string>"[^"\n]*)
  | (?P<single>'[^'\n]*')
  | (?P<open>[({\[])
  | (?P<close>[)}\]])
  | (?P<semicolon>;+)
  | (?P<hash>\#[^\n]*)
  | (?P<foreign>[^\sA-Za-z0-9_.,:=+\-*/%&|^<>!~?]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
# Line ends to some editors and not to others, directions of writing, and characters without width: with these,
# what looks like a rule can be a comment, or the other way round (CVE-2021-42574).
_DECEPTIVE = re.compile(
    "[\x0b\x0c\x85\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]|\r(?!\n)"
)
_SPACE_OUTSIDE_ASCII = re.compile(r"[^\S \t\r\n]")


@dataclass(frozen=True)
class LexicalText:
    """Result of `scan_text`."""

    repaired: str
    comments: tuple[Comment, ...]


def scan_text(source: SourceFile, problems: Collector) -> LexicalText:
    """Scan a source; problems that leave something to parse go to `problems`.

    Raises DiagnosticError at once for what makes parsing pointless: too long (O2C0107), not text
    (O2C0108), nested too deep (O2C0109), or a comment without an end (O2C0104).
    """
    text = source.text
    if len(text) > MAX_SOURCE_CHARACTERS:
        raise DiagnosticError(
            error(
                "O2C0107",
                f"policy is longer than {MAX_SOURCE_CHARACTERS} characters",
                source.span(MAX_SOURCE_CHARACTERS, MAX_SOURCE_CHARACTERS),
                "the limit is here",
                notes=(f"it has {len(text)} characters",),
                help="split it into modules and import them with `use`",
            )
        )
    control = _CONTROL.search(text)
    if control:
        raise DiagnosticError(
            error(
                "O2C0108",
                "this is not a text file",
                source.span(control.start(), control.end()),
                f"control character U+{ord(control.group()):04X}",
            )
        )
    for match in _DECEPTIVE.finditer(text):
        if len(problems.diagnostics) >= MAX_PROBLEMS:
            raise DiagnosticError(problems.diagnostics)
        name = unicodedata.name(
            match.group(), "carriage return" if match.group() == "\r" else "control character"
        )
        problems.add(
            error(
                "O2C0119",
                "invisible character that can make a policy read differently than it is",
                source.span(match.start(), match.end()),
                f"U+{ord(match.group()):04X} {name.lower()}",
                help="remove it",
            )
        )
    text = _SPACE_OUTSIDE_ASCII.sub(" ", _DECEPTIVE.sub(" ", text))

    comments: list[Comment] = []
    pieces: list[str] = []
    copied = 0
    depth = 0
    for match in _TOKEN.finditer(text):
        kind, start, end = match.lastgroup, match.start(), match.end()
        span = source.span(start, end)
        if len(problems.diagnostics) >= MAX_PROBLEMS:
            raise DiagnosticError(problems.diagnostics)
        replacement: str | None = None
        match kind:
            case "line_comment" | "block_comment":
                line_start = text.rfind("\n", 0, start) + 1
                own_line = not text[line_start:start].strip()
                comments.append(Comment(span, match.group().rstrip("\r"), own_line))
            case "open_comment":
                problems.add(
                    error(
                        "O2C0104",
                        "comment is not closed",
                        span,
                        "begins here",
                        help="end it with `*/`",
                    )
                )
                raise DiagnosticError(problems.diagnostics)
            case "open_string":
                problems.add(
                    error(
                        "O2C0103",
                        "string is not closed on its line",
                        span,
                        "begins here",
                        help='end it with `"`',
                    )
                )
                body = match.group()[:-1]
                replacement = body + '"' if body else " "
            case "single":
                problems.add(
                    error(
                        "O2C0103",
                        "strings are written in double quotes",
                        span,
                        "in single quotes",
                        help=f'write `"{match.group()[1:-1]}"`',
                    )
                )
                replacement = f'"{match.group()[1:-1]}"'
            case "open":
                depth += 1
                if depth > MAX_NESTING:
                    problems.add(
                        error(
                            "O2C0109",
                            f"brackets are nested more than {MAX_NESTING} levels deep",
                            span,
                            "this one is too deep",
                        )
                    )
                    raise DiagnosticError(problems.diagnostics)
            case "close":
                depth = max(0, depth - 1)
            case "semicolon":
                problems.add(
                    error(
                        "O2C0105",
                        "`;` ends nothing here",
                        span,
                        "not needed",
                        help="every item begins with its keyword; remove the `;`",
                    )
                )
                replacement = " " * (end - start)
            case "hash":
                problems.add(
                    error(
                        "O2C0102",
                        "`#` does not begin a comment",
                        source.span(start, start + 1),
                        "unknown character",
                        help="comments begin with `//`",
                    )
                )
                replacement = " " * (end - start)
            case "foreign":
                shown = match.group()[:20]
                problems.add(
                    error("O2C0102", f"unknown character in `{shown}`", span, "not part of the language")
                )
                replacement = " " * (end - start)
            case _:
                pass
        if replacement is not None:
            pieces += (text[copied:start], replacement)
            copied = end
    pieces.append(text[copied:])
    return LexicalText("".join(pieces), tuple(comments))
