# SPDX-License-Identifier: Apache-2.0
"""The shape of a source for the formatter: tokens and comments, grouped by braces and items.

The formatter works on tokens, not on the AST alone, so that comments and the way numbers are written
survive, and so that what it prints cannot mean something else.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from lark import Token

from o2cc.diagnostics import SourceFile
from o2cc.syntax import nodes as n
from o2cc.syntax.parser import Parsed


@dataclass(eq=False)
class Entry:
    """An item of a block, an element of a list, or an item of the file."""

    leading: list[n.Comment | None] = field(default_factory=list)  # None is a blank line
    pieces: list[Token | Group | n.Comment] = field(default_factory=list)
    trailing: list[n.Comment] = field(default_factory=list)
    blank_before: bool = False


@dataclass(eq=False)
class Group:
    """Braces: a block, whose entries begin with keywords, or a list, whose entries have commas between."""

    is_block: bool
    entries: list[Entry] = field(default_factory=list)
    after_open: list[n.Comment] = field(default_factory=list)
    dangling: list[n.Comment | None] = field(default_factory=list)
    blank_before_dangling: bool = False
    keep_open: bool = False  # the source has a line end after the brace, which blocks keep


@dataclass(frozen=True)
class Marks:
    """Offsets with a meaning that tokens alone do not show."""

    items: frozenset[int]
    inner_items: frozenset[int]
    clauses: frozenset[int]
    places: frozenset[int]
    tight: frozenset[int]
    unary: frozenset[int]
    elements: frozenset[int]


def marks_of(file: n.PolicyFile) -> Marks:
    """Collect the marks from the AST."""
    items = frozenset(item.span.start for item in file.items)
    inner: set[int] = set()
    clauses: set[int] = set()
    places: set[int] = set()
    tight: set[int] = set()
    elements: set[int] = set()
    unary: set[int] = set()
    for node in n.walk(file):
        match node:
            case n.ExternFunction() | n.ExternEntry():
                clauses.update(clause.span.start for clause in node.clauses)
                inner.update(clause.span.start for clause in node.clauses)
            case n.Entry() | n.Gate():
                inner.update(clause.span.start for clause in node.clauses)
            case n.Compartment() | n.InFunctions():
                inner.update(rule.span.start for rule in node.rules)
            case n.Test():
                inner.update(step.span.start for step in node.steps)
            case n.CapsDef():
                elements.update(item.span.start for item in node.items)
            case n.Audition():
                inner.update(item.span.start for item in node.items)
            case n.Transition():
                elements.update(item.span.start for item in node.items)
            case n.Writes() | n.Reads() | n.Shares():
                places.update(place.span.start for place in node.places[1:])
            case n.SiteRef():
                tight.update(range(node.span.start, node.span.end))
            case n.Unary():
                unary.add(node.span.start)
            case _:
                pass
    return Marks(
        items=items,
        inner_items=frozenset(inner),
        clauses=frozenset(clauses),
        places=frozenset(places),
        tight=frozenset(tight),
        unary=frozenset(unary),
        elements=frozenset(elements),
    )


class Grouper:
    """Builds the entries of a file; linear in the text, recursion bounded by the limit on nesting."""

    def __init__(self, source: SourceFile, parsed: Parsed, marks: Marks) -> None:
        self.source = source
        self.marks = marks
        merged: list[Token | n.Comment] = [*parsed.tokens, *parsed.file.comments]
        merged.sort(key=_start)
        self.stream = merged
        self.at = 0
        # Index of the first token at or after each index: runs of comments must not cost quadratic time.
        self.token_from = [len(merged)] * (len(merged) + 1)
        for index in range(len(merged) - 1, -1, -1):
            is_token = isinstance(merged[index], Token)
            self.token_from[index] = index if is_token else self.token_from[index + 1]

    def file(self) -> tuple[list[Entry], list[n.Comment | None], bool]:
        """Entries, comments after the last of them, and whether a blank line goes before those."""
        group = Group(is_block=True)
        self._fill(group, self.marks.items, -1)
        return group.entries, group.dangling, group.blank_before_dangling

    def _line(self, offset: int) -> int:
        return bisect_right(self.source.line_starts, offset)

    def _fill(self, group: Group, starts: frozenset[int], opened_at: int) -> None:
        """Read entries into the group up to its closing brace (consumed) or the end of the file."""
        entry: Entry | None = None
        waiting: list[n.Comment | None] = []  # comments that belong to the next entry, unless there is none
        blank = False
        parens = 0
        last_end = opened_at
        after_comma = False
        while self.at < len(self.stream):
            piece = self.stream[self.at]
            start = _start(piece)
            same_line = last_end >= 0 and self._line(max(0, last_end - 1)) == self._line(start)
            gap = last_end >= 0 and self._line(start) - self._line(max(0, last_end - 1)) > 1
            if isinstance(piece, n.Comment):
                self.at += 1
                last_end = piece.span.end
                closed_line = entry is not None and _ends_in_line_comment(entry)
                if same_line and not waiting and not closed_line:
                    if entry is None:
                        group.after_open.append(piece)
                    elif parens or not self._ends_entry(group, starts, after_comma):
                        entry.pieces.append(piece)
                    else:
                        entry.trailing.append(piece)
                elif entry is not None and (parens or not self._ends_entry(group, starts, after_comma)):
                    entry.pieces.append(piece)
                else:
                    if waiting and gap:
                        waiting.append(None)
                    blank = blank or (gap and not waiting)
                    waiting.append(piece)
                continue
            if piece.type == "RBRACE":
                self.at += 1
                group.dangling = waiting
                group.blank_before_dangling = blank and bool(group.entries)
                return
            begins = self._begins(group, starts, start, entry is None or after_comma)
            if begins and not parens:
                if waiting and gap:
                    waiting.append(None)
                entry = Entry(waiting, [], [], (blank or (gap and not waiting)) and bool(group.entries))
                group.entries.append(entry)
                waiting, blank = [], False
            after_comma = False
            assert entry is not None  # the parser has accepted these tokens
            self.at += 1
            last_end = piece.end_pos or 0
            if piece.type == "LBRACE":
                entry.pieces.append(self._group(last_end))
                closing = self.stream[self.at - 1]
                assert isinstance(closing, Token)
                last_end = closing.end_pos or 0
                continue
            parens += (piece.type in ("LPAR", "LSQB")) - (piece.type in ("RPAR", "RSQB"))
            if piece.type == "COMMA" and not parens and not group.is_block:
                after_comma = True
            else:
                if start in self.marks.places and _last_type(entry) not in ("COMMA", ""):
                    entry.pieces.append(Token("COMMA", ","))
                entry.pieces.append(piece)
        group.dangling = waiting
        group.blank_before_dangling = blank and bool(group.entries)

    def _begins(self, group: Group, starts: frozenset[int], start: int, is_next: bool) -> bool:
        """Whether an entry begins at this offset; `is_next`: one must, if the group is a list."""
        return start in starts if group.is_block else is_next or start in self.marks.elements

    def _group(self, opened_at: int) -> Group:
        following = self._next_token(self.at)
        is_block = following is not None and (following.start_pos or 0) in self.marks.inner_items
        first = following.start_pos or 0 if following is not None else 0
        of_items = is_block or first in self.marks.elements
        group = Group(is_block, keep_open=of_items and self._line(first) > self._line(opened_at - 1))
        self._fill(group, self.marks.inner_items, opened_at)
        return group

    def _next_token(self, index: int) -> Token | None:
        found = self.token_from[index]
        if found == len(self.stream):
            return None
        token = self.stream[found]
        assert isinstance(token, Token)
        return token

    def _ends_entry(self, group: Group, starts: frozenset[int], after_comma: bool) -> bool:
        """Whether the entry is complete where the comment just read stands."""
        following = self._next_token(self.at)
        if following is None or following.type == "RBRACE" or after_comma:
            return True
        if self._begins(group, starts, following.start_pos or 0, False):
            return True
        return not group.is_block and following.type == "COMMA"


def _last_type(entry: Entry) -> str:
    last = next((piece for piece in reversed(entry.pieces) if not isinstance(piece, n.Comment)), None)
    return last.type if isinstance(last, Token) else ""


def _ends_in_line_comment(entry: Entry) -> bool:
    return bool(entry.trailing) and entry.trailing[-1].text.startswith("//")


def _start(piece: Token | n.Comment) -> int:
    return piece.span.start if isinstance(piece, n.Comment) else piece.start_pos or 0
