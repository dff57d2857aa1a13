# SPDX-License-Identifier: Apache-2.0
"""Walks over the tokens of the IR's text form, with diagnostics for what is not expected and ways to go on after."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from o2cc.diagnostics import Collector, SourceFile, Span, did_you_mean, error
from o2cc.ir.tokens import Kind, tokenize

WORD = 1 << 64

Item = TypeVar("Item")


class Recover(Exception):
    """Leaves the statement that is wrong; its diagnostic has been added."""


class Cursor:
    """A place among tokens.  What is expected and not there raises `Recover` after its error was added."""

    def __init__(self, source: SourceFile) -> None:
        self.errors = Collector()
        self._source = source
        self._kinds, self._texts, self._starts = tokenize(source.text)
        self._at = 0

    def _fail(self, message: str, help: str | None = None) -> Recover:
        return self._fail_at(self._at, message, help)

    def _fail_at(self, index: int, message: str, help: str | None = None, code: str = "O2C0500") -> Recover:
        self.errors.add(error(code, message, self._token_span(index), help=help))
        return Recover()

    def _token_span(self, index: int) -> Span:
        start = self._starts[index]
        return self._source.span(start, start + len(self._texts[index]))

    def _span_from(self, first: int) -> Span:
        last = self._at - 1
        return Span(self._source.name, self._starts[first], self._starts[last] + len(self._texts[last]))

    def _shown(self) -> str:
        if self._kinds[self._at] is Kind.END:
            return "the end of the file"
        text = self._texts[self._at]
        return f"`{text[:40]}`" if text.strip() else "text that is not IR"

    def _peek(self, text: str) -> bool:
        return self._texts[self._at] == text and self._kinds[self._at] is not Kind.STRING

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._fail(f"expected `{text}`, found {self._shown()}")

    def _text(self, kind: Kind, what: str) -> str:
        if self._kinds[self._at] is not kind:
            raise self._fail(f"expected {what}, found {self._shown()}")
        self._at += 1
        return self._texts[self._at - 1]

    def _word(self, what: str) -> str:
        return self._text(Kind.NAME, what)

    def _string(self, what: str) -> str:
        text = self._text(Kind.STRING, what)
        try:
            return str(json.loads(text))
        except ValueError:
            raise self._fail_at(self._at - 1, "this string has an escape that is not one of JSON") from None

    def _symbol_name(self, what: str) -> str:
        return self._string(what) if self._kinds[self._at] is Kind.STRING else self._word(what)

    def _number(self, what: str) -> int:
        value = self._signed(what)
        if value < 0:
            raise self._fail_at(self._at - 1, f"{what} cannot be negative")
        return value

    def _signed(self, what: str) -> int:
        text = self._text(Kind.NUMBER, what)
        if len(text) > 24:
            raise self._fail_at(self._at - 1, "a number must fit 64 bits")
        return int(text, 16) if "x" in text or "X" in text else int(text)

    def _word_value(self, what: str) -> int:
        value = self._signed(what)
        if not -(WORD >> 1) <= value < WORD:
            raise self._fail_at(self._at - 1, "a number must fit 64 bits")
        return value % WORD

    def _choice(self, table: Mapping[str, Item], what: str) -> Item:
        text = self._word(what)
        if text not in table:
            known = ", ".join(f"`{name}`" for name in table)
            raise self._fail_at(
                self._at - 1, f"`{text}` is not {what}", did_you_mean(text, table) or f"one of {known}"
            )
        return table[text]

    def _listed(self, opening: str, closing: str, item: Callable[[], Item]) -> tuple[Item, ...]:
        self._expect(opening)
        items: list[Item] = []
        if self._take(closing):
            return ()
        while True:
            items.append(item())
            if self._take(closing):
                return tuple(items)
            if not self._take(","):
                raise self._fail(f"expected `,` or `{closing}`, found {self._shown()}")

    def _line_break(self, before: int, after: int) -> bool:
        return "\n" in self._source.text[self._starts[before] : self._starts[after]]

    def _skip_line(self, first: int) -> None:
        """Past the statement that began at token `first`, at least past the line where it went wrong."""
        if self._at == first and self._kinds[self._at] is not Kind.END:
            self._at += 1
        while self._kinds[self._at] is not Kind.END:
            if self._line_break(self._at - 1, self._at):
                return
            self._at += 1

    def _skip_part(self, first: int, parts: Sequence[str]) -> None:
        """To the next part of the file after token `first`: one of the words `parts` that begins a line."""
        self._at = max(self._at, first + 1)
        while self._kinds[self._at] is not Kind.END:
            start = self._starts[self._at]
            if self._texts[self._at] in parts and self._source.text[start - 1 : start] == "\n":
                return
            self._at += 1
