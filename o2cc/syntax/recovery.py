# SPDX-License-Identifier: Apache-2.0
"""After a syntax error: say what is wrong, and set the parser to where it can go on.

The parser goes on at the next keyword that begins an item in the same block (first on its line, or a
top-level keyword at the start of any line), or at the brace that closes the block. States are popped
until one can take that token at the same depth of braces; nothing is made up except a `==` for a `=`
and a forgotten comma.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Any

from lark import Lark, Token, UnexpectedCharacters, UnexpectedToken
from lark.lexer import PatternStr

from o2cc.diagnostics import Collector, Diagnostic, Label, SourceFile, Span, did_you_mean, error
from o2cc.syntax.hints import Mistake, hint
from o2cc.syntax.states import Interactive, brace, end_of, innermost_brace, open_braces, takes

_MARK = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"|(?P<mark>[{}]|[A-Za-z_][A-Za-z0-9_]*)', re.DOTALL)

TOP_LEVEL = frozenset(("use", "const", "set", "shared", "caps", "extern", "compartment", "test"))
_EXPRESSION_START = frozenset(("INT", "NAME", "MINUS", "NOT", "LPAR", "RATIO", "SIZEOF"))
_OPERATORS = frozenset(
    ("OR", "AND", "COMPARE", "SHIFT", "BAR", "CARET", "AMPERSAND", "PLUS", "MINUS", "PRODUCT")
)
_UNITS = frozenset(("B", "KIB", "MIB", "GIB", "NS", "US", "MS", "S", "MIN"))
_CLASSES = {
    "NAME": "a name",
    "GLOB": "a pattern",
    "STRING": "a string",
    "INT": "a number",
    "RATIO": "a decimal fraction",
    "COMPARE": "a comparison",
    "$END": "the end of the file",
}

# Words of neighbouring languages, and what they are called here.
_OTHER_WORDS = {
    "allow": "call",
    "import": "use",
    "include": "use",
    "module": "code modules",
    "function": "code functions",
    "functions": "code functions",
    "let": "const",
    "define": "const",
    "policy": "compartment",
    "domain": "compartment",
    "if": "require",
    "assert": "require",
    "requires": "require",
    "deny": "on violation deny",
    "writable": "write",
    "fn": "extern fn",
    "timeout": "transition { at most 60 s }",
}

_OTHER_UNITS = {
    "K": "KiB",
    "KB": "KiB",
    "kB": "KiB",
    "M": "MiB",
    "MB": "MiB",
    "G": "GiB",
    "GB": "GiB",
    "byte": "B",
    "bytes": "B",
    "sec": "s",
    "seconds": "s",
    "second": "s",
    "msec": "ms",
    "usec": "us",
    "m": "min",
    "minutes": "min",
}
_FEW = 8
# What follows the keyword of an item on its line, and not an element of a list.
_MORE_ELEMENTS = re.compile(r"(?:[ \t]*\.[A-Za-z0-9_*?. ]+)?\s*[,}]")
_MORE_WORDS = re.compile(r'[ \t]+[A-Za-z_"{0-9]')


class Recovery:
    """Recovers within one text; made at the first error."""

    def __init__(self, lark: Lark, source: SourceFile, text: str) -> None:
        self.source = source
        self.text = text
        self.words: dict[str, str] = {}
        self.fixed: dict[str, str] = {}
        for terminal in lark.terminals:
            if isinstance(terminal.pattern, PatternStr):
                self.fixed[terminal.name] = terminal.pattern.value
                if terminal.pattern.value[0].isalpha():
                    self.words[terminal.pattern.value] = terminal.name
        self.marks = [m for m in _MARK.finditer(text) if m.group("mark")]
        self._next_mark = 0
        self._last_position = -1

    def recover(
        self,
        interactive: Interactive,
        trouble: UnexpectedToken | UnexpectedCharacters,
        problems: Collector,
    ) -> bool:
        """Report the error; whether the parser can go on (its lexer is then at the right place)."""
        state = interactive.parser_state
        accepted = interactive.accepts()
        token = self._token(trouble)
        start = len(self.text.rstrip()) if token.type == "$END" else token.start_pos or 0
        if self._patch(interactive, token, accepted, problems):
            return True
        if self._is_dedented(token, state.value_stack) and self._close_block(interactive, token, problems):
            return True
        swallowed = self._swallowed_keyword(start, state.value_stack)
        if swallowed is not None:
            start = swallowed.start()
            problems.add(
                error(
                    "O2C0101",
                    f"something is missing before `{swallowed.group()}`",
                    Span(self.source.name, start, swallowed.end()),
                    "the item before it is not finished",
                )
            )
        else:
            problems.add(self._diagnose(interactive, token, accepted))
        is_unknown_item = problems.diagnostics[-1].code == "O2C0112" and self._first_on_line(start)
        if token.type == "$END":
            return False
        if start <= self._last_position:
            start = self._last_position + 1  # never the same place twice
        self._last_position = start
        return self._synchronize(interactive, state, start, self._column(start) if is_unknown_item else None)

    def _swallowed_keyword(self, start: int, values: list[Any]) -> re.Match[str] | None:
        """The keyword before the error, if it begins a line and so was meant to begin an item."""
        index = bisect_left(self.marks, start, key=lambda mark: mark.start()) - 1
        if index < 0:
            return None
        mark = self.marks[index]
        terminal = self.words.get(mark.group("mark"))
        if values and isinstance(values[-1], Token) and values[-1].type == terminal:
            return None  # it was read as the keyword that it is
        is_keyword = terminal is not None and mark.start() > self._last_position
        if is_keyword and self._first_on_line(mark.start()) and not self.text[mark.end() : start].strip():
            opener = self.text[: mark.start()].rstrip()[-1:]
            return mark if opener and opener not in "{}" else None
        return None

    # -------------------------------------------------------------- finding the next item

    def _synchronize(self, interactive: Interactive, state: Any, start: int, item_column: int | None) -> bool:
        """Go on after `start`. With an item column, other unknown items of the block begin there."""
        depth = open_braces(state.value_stack)
        while self._next_mark < len(self.marks) and self.marks[self._next_mark].start() < start:
            self._next_mark += 1
        inner = 0
        for index in range(self._next_mark, len(self.marks)):
            mark = self.marks[index]
            word = mark.group("mark")
            if word == "{":
                inner += 1
            elif word == "}":
                if inner:
                    inner -= 1
                elif self._resume(interactive, state, depth, "RBRACE", mark.start()):
                    return True
                else:
                    depth = max(0, depth - 1)
            elif word in self.words and self._first_on_line(mark.start()):
                at_margin = mark.start() == 0 or self.text[mark.start() - 1] == "\n"
                if word in TOP_LEVEL and at_margin:
                    if self._resume(interactive, state, 0, self.words[word], mark.start()):
                        return True
                elif not inner and self._resume(interactive, state, depth, self.words[word], mark.start()):
                    return True
            elif not inner and mark.start() > start and self._is_item_at(mark.start(), item_column):
                interactive.lexer_thread.state.line_ctr.char_pos = mark.start()
                return True
        return False

    def _is_item_at(self, offset: int, column: int | None) -> bool:
        return column == self._column(offset) and self._first_on_line(offset)

    def _column(self, offset: int) -> int:
        return offset - self.text.rfind("\n", 0, offset)

    def _first_on_line(self, offset: int) -> bool:
        return not self.text[self.text.rfind("\n", 0, offset) + 1 : offset].strip()

    def _resume(self, interactive: Interactive, state: Any, depth: int, terminal: str, offset: int) -> bool:
        """Pop to the topmost state at this depth of braces that takes the terminal; False: none does."""
        table = state.parse_conf.parse_table.states
        states, values = state.state_stack, state.value_stack
        braces = open_braces(values)
        for height in range(len(states) - 1, -1, -1):
            promising = braces == depth and terminal in table[states[height]]
            if promising and takes(interactive, height + 1, terminal):
                del states[height + 1 :]
                del values[height:]
                interactive.lexer_thread.state.line_ctr.char_pos = offset
                return True
            if height:
                braces -= brace(values[height - 1])
            if braces < depth:
                return False
        return False

    # -------------------------------------------------------------- mistakes that leave a way on

    def _patch(self, interactive: Interactive, token: Token, accepted: set[str], problems: Collector) -> bool:
        if token.type == "EQUAL" and "COMPARE" in accepted:
            problems.add(
                error(
                    "O2C0106",
                    "`=` does not compare",
                    self._span(token),
                    "in a condition",
                    help="write `==`",
                )
            )
            interactive.feed_token(Token.new_borrow_pos("COMPARE", "==", token))
            return True
        in_list = {"COMMA", "RBRACE"} <= accepted and len(self._words_in(accepted)) <= _FEW
        if token.type in ("NAME", "STRING", "GLOB") and in_list:
            for word in filter(None, (self._word_before(token), token)):
                if self._begins_item_of_outer_block(word) and self._close_block(interactive, word, problems):
                    return True
            if self._close_list(interactive, token, problems):
                return True
            value = interactive.parser_state.value_stack[-1]
            end = end_of(value)
            span = Span(self.source.name, end, end) if end is not None else self._span(token)
            if not takes(interactive, len(interactive.parser_state.state_stack), "COMMA", token.type):
                return False
            if ";" not in self.source.text[span.start : token.start_pos or 0]:  # else it was diagnosed
                problems.add(
                    error(
                        "O2C0101",
                        f"expected `,` or `}}` before {self._shown(token)}",
                        self._span(token),
                        "begins a new element",
                        secondary=(Label(span, "`,` is missing here"),),
                    )
                )
            interactive.feed_token(Token.new_borrow_pos("COMMA", ",", token))
            self._rewind(interactive, token)
            return True
        return self._open_block(interactive, token, accepted, problems)

    def _close_list(self, interactive: Interactive, token: Token, problems: Collector) -> bool:
        """Go on as if the list had ended, at a keyword with more words behind it that may follow the list."""
        opening = innermost_brace(interactive.parser_state.value_stack)
        terminal = self.words.get(str(token))
        if opening is None or terminal is None or not _MORE_WORDS.match(self.text, token.end_pos or 0):
            return False
        if not takes(interactive, len(interactive.parser_state.state_stack), "RBRACE", terminal):
            return False
        problems.add(self._not_closed(opening, token, "not part of the list"))
        interactive.feed_token(Token.new_borrow_pos("RBRACE", "}", token))
        self._rewind(interactive, token)
        return True

    def _open_block(
        self, interactive: Interactive, token: Token, accepted: set[str], problems: Collector
    ) -> bool:
        """Go on as if there were a brace before what looks like the first element of a list."""
        is_element = token.type == "NAME" and _MORE_ELEMENTS.match(self.text, token.end_pos or 0)
        height = len(interactive.parser_state.state_stack)
        if "LBRACE" not in accepted or not is_element or not takes(interactive, height, "LBRACE", token.type):
            return False
        problems.add(
            error(
                "O2C0116",
                f"`{{` is missing before {self._shown(token)}",
                self._span(token),
                "looks like the beginning of a list",
                help="add the missing `{`",
            )
        )
        interactive.feed_token(Token.new_borrow_pos("LBRACE", "{", token))
        self._rewind(interactive, token)
        return True

    def _word_before(self, token: Token) -> Token | None:
        """The word directly before, on the same line."""
        start = token.start_pos or 0
        index = bisect_left(self.marks, start, key=lambda mark: mark.start()) - 1
        if index < 0 or self.text[self.marks[index].end() : start].strip(" \t"):
            return None
        mark = self.marks[index]
        return Token("NAME", mark.group("mark"), mark.start(), end_pos=mark.end())

    def _is_dedented(self, token: Token, values: list[Any]) -> bool:
        """Whether this keyword stands as far left as the line that opened the block around it."""
        opening = innermost_brace(values)
        start = token.start_pos or 0
        if opening is None or str(token) not in self.words or not self._first_on_line(start):
            return False
        opened_at = opening.start_pos or 0
        line = self.text[self.text.rfind("\n", 0, opened_at) + 1 : opened_at]
        indent = len(line) - len(line.lstrip(" \t"))
        return self._column(start) - 1 == indent

    def _begins_item_of_outer_block(self, token: Token) -> bool:
        """Whether this word of a list looks like the keyword of an item after a list that was not closed."""
        start, end = token.start_pos or 0, token.end_pos or 0
        return (
            str(token) in self.words
            and self._first_on_line(start)
            and bool(_MORE_WORDS.match(self.text, end))
        )

    def _not_closed(self, opening: Token, token: Token, label: str) -> Diagnostic:
        return error(
            "O2C0116",
            "`{` is not closed",
            self._span(opening),
            "opened here",
            secondary=(Label(self._span(token), label),),
            help=f"add the missing `}}` before `{token}`",
        )

    def _close_block(self, interactive: Interactive, token: Token, problems: Collector) -> bool:
        state = interactive.parser_state
        opening = innermost_brace(state.value_stack)
        depth = open_braces(state.value_stack) - 1
        terminal = self.words[str(token)]
        if opening is None or not self._resume(interactive, state, depth, terminal, token.start_pos or 0):
            return False
        problems.add(self._not_closed(opening, token, "the next item begins here"))
        return True

    def _rewind(self, interactive: Interactive, token: Token) -> None:
        interactive.lexer_thread.state.line_ctr.char_pos = token.start_pos or 0

    # -------------------------------------------------------------- words for it

    def _diagnose(self, interactive: Interactive, token: Token, accepted: set[str]) -> Diagnostic:
        opening = innermost_brace(interactive.parser_state.value_stack)
        opened: tuple[Label, ...] = ()
        if opening is not None:
            opened = (Label(self._span(opening), "opened here"),)
        if token.type == "$END":
            end = len(self.text.rstrip())
            place = Span(self.source.name, end, end)
            if opening is not None:
                return error(
                    "O2C0116",
                    "`{` is not closed",
                    self._span(opening),
                    "opened here",
                    secondary=(Label(place, "the file ends here"),),
                    help="add the missing `}`",
                )
            return error(
                "O2C0101",
                f"the file ends too early: expected {self._expected(accepted)}",
                place,
                "ends here",
            )
        word = str(token)
        span = self._span(token)
        at_margin = span.start == 0 or self.text[span.start - 1] == "\n"
        if opening is not None and word in TOP_LEVEL and at_margin and self.words[word] not in accepted:
            return error(
                "O2C0116",
                f"`{word}` cannot stand inside a block",
                span,
                "the block is still open here",
                secondary=opened,
                help="add the missing `}` before it",
            )
        if token.type == "RBRACE" and opening is None:
            return error("O2C0117", "`}` closes nothing", span, "no block is open here")
        keywords = sorted(self.fixed[name] for name in accepted if self.fixed.get(name) in self.words)
        help = hint(Mistake(word, token.type, self.text[: span.start].rstrip(), accepted))
        after_number = len(accepted & _UNITS) == len(_UNITS) and not self._first_on_line(span.start)
        if token.type == "NAME" and after_number and help is None:
            known = [self.fixed[name] for name in sorted(_UNITS)]
            help = f"did you mean `{_OTHER_UNITS[word]}`?" if word in _OTHER_UNITS else None
            return error(
                "O2C0118",
                f"unknown unit `{word}`",
                span,
                "not a unit",
                help=help or did_you_mean(word, known) or f"units are {_join([f'`{k}`' for k in known])}",
            )
        if self._begins_item(token, accepted):
            if word in self.words and word not in _OTHER_WORDS:
                return error(
                    "O2C0112",
                    f"`{word}` cannot stand in this block",
                    span,
                    "not here",
                    secondary=opened,
                    help=f"expected {_join([f'`{k}`' for k in keywords])}",
                )
            help = did_you_mean(word, keywords) or help
            if word in _OTHER_WORDS and help is None:
                help = f"did you mean `{_OTHER_WORDS[word]}`?"
            return error(
                "O2C0112",
                f"unknown item `{word}`",
                span,
                "no item begins with this",
                secondary=opened,
                help=help or f"expected {_join([f'`{k}`' for k in keywords])}",
            )
        help = help or (did_you_mean(word, keywords) if word[:1].isalpha() else None)
        return error(
            "O2C0101",
            f"expected {self._expected(accepted)}, found {self._shown(token)}",
            span,
            "unexpected",
            help=help,
        )

    def _begins_item(self, token: Token, accepted: set[str]) -> bool:
        """Whether this is a plain word where only keywords could stand, at the beginning of a line or block."""
        if token.type != "NAME" and str(token) not in self.words:
            return False
        before = self.text[: token.start_pos or 0].rstrip(" \t")
        starts = not before or before[-1] in "\n{}"
        return starts and not accepted & {"NAME", "STRING", "INT"} and bool(self._words_in(accepted))

    def _expected(self, accepted: set[str]) -> str:
        rest = set(accepted)
        phrases: list[str] = []
        if rest >= _EXPRESSION_START:
            phrases.append("an expression")
            rest -= _EXPRESSION_START
        if len(rest & _OPERATORS) >= 6:
            phrases.append("an operator")
            rest -= _OPERATORS
        if rest >= _UNITS:
            phrases.append("a unit")
            rest -= _UNITS
        phrases += sorted(_CLASSES[name] for name in rest if name in _CLASSES)
        words = self._words_in(rest)
        if len(words) > _FEW:
            phrases.append("the next item")
            rest -= words
        phrases += sorted(f"`{self.fixed[name]}`" for name in rest if name in self.fixed)
        return _join(phrases)

    def _words_in(self, terminals: set[str]) -> set[str]:
        return {name for name in terminals if self.fixed.get(name) in self.words}

    def _shown(self, token: Token) -> str:
        text = str(token)
        return f"`{text if len(text) <= 40 else text[:37] + '...'}`"

    def _span(self, token: Token) -> Span:
        start = token.start_pos or 0
        return Span(self.source.name, start, start + len(token))

    def _token(self, trouble: UnexpectedToken | UnexpectedCharacters) -> Token:
        if isinstance(trouble, UnexpectedToken):
            token: Token = trouble.token
            return token
        position = trouble.pos_in_stream or 0
        return Token("", self.text[position : position + 1], position, end_pos=position + 1)


def _join(phrases: list[str]) -> str:
    if not phrases:
        return "something else"
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} or {phrases[-1]}"
