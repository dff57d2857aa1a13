# SPDX-License-Identifier: Apache-2.0
"""Text to AST.

The grammar is `grammar/o2c.lark`. lark's LALR parser is driven token by token, so that after an error
the parser can be set to the next place where an item begins, and one run shows all errors. Work is
linear in the text, and its length and nesting are limited (see `o2cc.syntax.lexical`), so that no
input makes the parser recurse deeply or run long.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedToken

from o2cc.diagnostics import Collector, Diagnostic, DiagnosticError, SourceFile, Span
from o2cc.resources import resource_directory
from o2cc.syntax import nodes
from o2cc.syntax.builder import AstBuilder
from o2cc.syntax.lexical import scan_text
from o2cc.syntax.recovery import Recovery
from o2cc.syntax.states import Interactive
from o2cc.syntax.tables import cached_parser

MAX_ERRORS = 50


class _KeepNames:
    """Lets the contextual lexer read a name everywhere: a wrong word is then one whole token."""

    always_accept = ("NAME",)

    def process(self, stream: Any) -> Any:
        """Tokens pass unchanged."""
        return stream


@cache
def grammar() -> Lark:
    """The parser, made once a process."""
    text = (resource_directory("grammar") / "o2c.lark").read_text(encoding="utf-8")
    postlex = _KeepNames()

    def build() -> Lark:
        return Lark(
            text,
            parser="lalr",
            lexer="contextual",
            propagate_positions=True,
            maybe_placeholders=False,
            postlex=postlex,
        )

    return cached_parser(text, build, postlex)


@dataclass(frozen=True)
class Parsed:
    """A file with its tokens in order, which the formatter lays out anew."""

    file: nodes.PolicyFile
    tokens: tuple[Token, ...]


def parse(source: SourceFile) -> nodes.PolicyFile:
    """The AST of a policy or standard library file.

    Raises DiagnosticError with every problem of syntax that was found (O2C01xx).
    """
    return parse_with_tokens(source).file


def parse_with_tokens(source: SourceFile) -> Parsed:
    """As `parse`, with the tokens (positions are offsets into the source's text)."""
    # A parse makes many objects and no garbage cycles: looking for some would double its time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _parse(source)
    finally:
        if collecting:
            gc.enable()


def _parse(source: SourceFile) -> Parsed:
    problems = Collector()
    lexical = scan_text(source, problems)
    of_grammar = Collector()
    tree, tokens = _run(source, lexical.repaired, of_grammar)
    problems.extend(_without_echoes(source, of_grammar.diagnostics, problems.diagnostics))
    if tree is None:
        raise DiagnosticError(problems.diagnostics)
    # After recovery the tree lacks what was wrong, but is still one of the grammar.
    builder = AstBuilder(source)
    items = builder.transform(tree)
    problems.extend(_without_echoes(source, builder.problems.diagnostics, problems.diagnostics))
    problems.raise_if_errors()
    file = nodes.PolicyFile(Span(source.name, 0, len(source.text)), items, lexical.comments)
    return Parsed(file, tokens)


# Codes of mistakes that make further messages about the same line worthless.
_ROOT_CAUSES = frozenset(("O2C0102", "O2C0103", "O2C0118"))


def _without_echoes(
    source: SourceFile, diagnostics: Iterable[Diagnostic], before: Iterable[Diagnostic]
) -> list[Diagnostic]:
    """Those that are not on a line where an earlier stage has found the cause."""
    spoiled = {_line(source, d) for d in before if d.code in _ROOT_CAUSES}
    return [d for d in diagnostics if d.code in _ROOT_CAUSES or _line(source, d) not in spoiled]


def _line(source: SourceFile, diagnostic: Diagnostic) -> int:
    return source.position(diagnostic.primary.span.start)[0] if diagnostic.primary else 0


def _run(source: SourceFile, text: str, problems: Collector) -> tuple[Tree[Token] | None, tuple[Token, ...]]:
    """Drive the parser over the text; the tree is None if it could not be led to the end."""
    lark = grammar()
    interactive: Interactive = lark.parse_interactive(text)
    recovery: Recovery | None = None
    tokens: list[Token] = []
    stream = interactive.lexer_thread.lex(interactive.parser_state)
    while True:
        try:
            token = next(stream, None)
            if token is None:
                last = tokens[-1] if tokens else Token("", "")
                end = Token.new_borrow_pos("$END", "", last)
                return interactive.feed_token(end), tuple(tokens)
            interactive.feed_token(token)
            tokens.append(token)
        except (UnexpectedToken, UnexpectedCharacters) as trouble:
            recovery = recovery or Recovery(lark, source, text)
            if len(problems.diagnostics) >= MAX_ERRORS:
                return None, ()
            going_on = recovery.recover(interactive, trouble, problems)
            if not going_on:
                return None, ()
            stream = interactive.lexer_thread.lex(interactive.parser_state)
