# SPDX-License-Identifier: Apache-2.0
"""The canonical layout of a policy.

Four spaces a level; at most 120 columns where a break is possible; one item a line in blocks, with the
verbs of a compartment's rules in a column; lists on one line or filled; a block on one line if it was and
fits, with two spaces between its items; single blank lines kept. Comments stay where they are. Formatting
what was formatted changes nothing, and the AST stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lark import Token

from o2cc.diagnostics import SourceFile
from o2cc.syntax import nodes as n
from o2cc.syntax.layout import Entry, Group, Grouper, Marks, marks_of
from o2cc.syntax.parser import parse_with_tokens

WIDTH = 120
INDENT = 4
# Stands between a line and its comment until columns are known; no source can contain it.
_COMMENT_MARK = "\0"
_ALIGNED_VERBS = frozenset(("CODE", "HEAP", "STACK", "WRITE", "ENTRY", "GATE", "CALL", "ICALL"))
_VERB_COLUMN = 7
_MANY_GROUPS = 8

_NAMES = frozenset(("NAME", "STRING", "GLOB"))
# Items whose blocks are structure and so are not put on one line.
_STRUCTURE = frozenset(("COMPARTMENT", "TEST", "IN"))


def format_source(source: SourceFile) -> str:
    """The text in canonical layout. Raises DiagnosticError when it does not parse."""
    parsed = parse_with_tokens(source)
    marks = marks_of(parsed.file)
    entries, dangling, blank = Grouper(source, parsed, marks).file()
    printer = _Printer(marks)
    lines: list[str] = []
    previous_block = False
    for entry in entries:
        block = _first_type(entry) in ("COMPARTMENT", "TEST")
        if lines and (entry.blank_before or block or previous_block):
            lines.append("")
        lines += printer.entry(entry, 0)
        previous_block = block
    if dangling:
        if lines and (blank or previous_block):
            lines.append("")
        lines += _all_comment_lines(dangling, 0)
    return _with_comment_columns(lines)


def _with_comment_columns(lines: list[str]) -> str:
    """Join the lines; comments at the end of consecutive lines begin in one column."""
    result: list[str] = []
    run: list[str] = []

    def end_run() -> None:
        column = max((len(line.partition(_COMMENT_MARK)[0]) for line in run), default=0)
        for line in run:
            code, _, comment = line.partition(_COMMENT_MARK)
            result.append(f"{code.ljust(column)}  {comment}")
        run.clear()

    for line in "\n".join(lines).split("\n") if lines else []:
        if _COMMENT_MARK in line:
            run.append(line)
        else:
            end_run()
            result.append(line)
    end_run()
    return "".join(f"{line}\n" for line in result)


def _first_type(entry: Entry) -> str:
    first = next((piece for piece in entry.pieces if isinstance(piece, Token)), None)
    return first.type if first is not None else ""


def _offset(token: Token) -> int:
    return token.start_pos if token.start_pos is not None else -1


def _comment_text(comment: n.Comment) -> str:
    lines = [line.rstrip() for line in comment.text.replace("\r\n", "\n").split("\n")]
    return "\n".join(lines)


def _comment_lines(comment: n.Comment, indent: int) -> list[str]:
    first, *rest = _comment_text(comment).split("\n")
    return [" " * indent + first, *rest]


def _all_comment_lines(comments: list[n.Comment | None], indent: int) -> list[str]:
    lines: list[str] = []
    for comment in comments:
        lines += _comment_lines(comment, indent) if comment is not None else [""]
    return lines


def _is_line_comment(comment: n.Comment) -> bool:
    return comment.text.startswith("//")


def _needs_own_end(comment: n.Comment) -> bool:
    return _is_line_comment(comment) or "\n" in comment.text


class _Printer:
    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    # -------------------------------------------------------------- entries

    def entry(self, entry: Entry, indent: int, *, suffix: str = "", aligned: bool = False) -> list[str]:
        """Lines of an entry with its comments; `suffix` is the comma of a list."""
        lines = _all_comment_lines(entry.leading, indent)
        lines += self._body(entry, indent, aligned)
        lines[-1] += suffix
        for number, comment in enumerate(entry.trailing):
            lines[-1] += (_COMMENT_MARK if number == 0 else " ") + _comment_text(comment)
        return lines

    def _body(self, entry: Entry, indent: int, aligned: bool) -> list[str]:
        """Lines of an entry without the comments around it: the first way to lay it out that fits."""
        groups = [piece for piece in entry.pieces if isinstance(piece, Group)]
        opened: set[int] = set()
        first = _first_type(entry)
        for group in groups:
            several = group.is_block and len(group.entries) > (1 if first == "IN" else 0)
            if self._flat_group(group) is None or (first in _STRUCTURE and several):
                opened.add(id(group))
        lines: list[str] = []
        for also, split_clauses in self._ways(
            entry, [id(g) for g in groups if id(g) not in opened and g.entries]
        ):
            lines = self._lay_out(entry, indent, aligned, opened | also, split_clauses)
            if all(len(line) <= WIDTH for line in lines):
                break
        return lines

    def _ways(self, entry: Entry, closed: list[int]) -> Iterator[tuple[set[int], bool]]:
        """Ways to lay an entry out, from compact to loose: groups to open, and whether clauses get lines."""
        has_clauses = any(isinstance(p, Token) and _offset(p) in self.marks.clauses for p in entry.pieces)
        yield set(), False
        if has_clauses:
            yield set(), True
        if len(closed) <= _MANY_GROUPS:
            for group in reversed(closed):
                yield {group}, False
                if has_clauses:
                    yield {group}, True
            for count in range(2, len(closed)):
                yield set(closed[-count:]), True
        if len(closed) > 1:
            yield set(closed), True

    def _lay_out(
        self, entry: Entry, indent: int, aligned: bool, opened: set[int], split_clauses: bool
    ) -> list[str]:
        """Lines of the pieces, breaking at soft places where a line would be too long."""
        lines: list[str] = []
        line = " " * indent
        fresh = True  # nothing but indentation on the line
        chunk = ""  # text since the last soft break
        chunk_glue = ""
        parens = 0
        previous: Token | Group | n.Comment | None = None

        def flush() -> None:
            nonlocal line, chunk, chunk_glue, fresh
            if not chunk:
                return
            if not fresh and len(line) + len(chunk_glue) + len(chunk.split("\n")[0]) > WIDTH:
                lines.append(line)
                line, fresh = " " * (indent + INDENT), True
            line += ("" if fresh else chunk_glue) + chunk
            fresh = False
            chunk, chunk_glue = "", ""

        def break_line() -> None:
            nonlocal line, fresh
            flush()
            lines.append(line)
            line, fresh = " " * (indent + INDENT), True

        for piece in entry.pieces:
            space = "" if previous is None else self._space(previous, piece)
            if isinstance(previous, n.Comment) and _needs_own_end(previous):
                break_line()
                space = ""
            if isinstance(piece, Token) and _offset(piece) in self.marks.clauses:
                if split_clauses and previous is not None:
                    break_line()
                    space = ""
            elif self._is_soft(previous, piece) and not parens:
                flush()
                chunk_glue, space = space, ""
            if isinstance(piece, Token):
                parens += (piece.type in ("LPAR", "LSQB")) - (piece.type in ("RPAR", "RSQB"))
                chunk += space + str(piece)
                if aligned and previous is None and piece.type in _ALIGNED_VERBS:
                    chunk = chunk.ljust(_VERB_COLUMN - 1)
            elif isinstance(piece, n.Comment):
                chunk += space + _comment_text(piece)
            elif id(piece) in opened:
                chunk += space + "{"
                flush()
                self._open_group(piece, entry, indent, lines, line)
                line, fresh = " " * indent + "}", False
            else:
                flat = self._flat_group(piece)
                chunk += space + (flat if flat is not None else "{}")
            previous = piece
        flush()
        lines.append(line)
        return lines

    # -------------------------------------------------------------- groups

    def _open_group(self, group: Group, entry: Entry, indent: int, lines: list[str], head: str) -> None:
        for comment in group.after_open:
            head += "  " + _comment_text(comment)
        lines.append(head)
        inside = indent + INDENT
        if group.is_block:
            aligned = _first_type(entry) in ("COMPARTMENT", "IN")
            for child in group.entries:
                if child.blank_before:
                    lines.append("")
                lines += self.entry(child, inside, aligned=aligned)
        elif any(child.trailing for child in group.entries):
            for child in group.entries:
                if child.blank_before:
                    lines.append("")
                lines += self.entry(child, inside, suffix=",")
        else:
            lines += self._fill(group, inside)
        if group.dangling:
            if group.blank_before_dangling:
                lines.append("")
            lines += _all_comment_lines(group.dangling, inside)

    def _fill(self, group: Group, indent: int) -> list[str]:
        """Elements side by side, in paragraphs that comments and blank lines begin."""
        lines: list[str] = []
        line = ""
        for child in group.entries:
            if line and (child.blank_before or child.leading):
                lines.append(line)
                line = ""
            if child.blank_before:
                lines.append("")
            lines += _all_comment_lines(child.leading, indent)
            text = self._flat_entry(replace(child, leading=[]))
            if text is None:
                if line:
                    lines.append(line)
                lines += self.entry(replace(child, leading=[]), indent, suffix=",")
                line = ""
                continue
            if line and len(line) + 1 + len(text) + 1 <= WIDTH:
                line += f" {text},"
            else:
                if line:
                    lines.append(line)
                line = " " * indent + f"{text},"
        if line:
            lines.append(line)
        return lines

    def _flat_group(self, group: Group) -> str | None:
        """The group on one line, or None when something in it needs a line of its own."""
        if group.keep_open or group.dangling or any(map(_needs_own_end, group.after_open)):
            return None
        texts: list[str] = []
        for child in group.entries:
            text = self._flat_entry(child)
            if text is None or (child.blank_before and (group.is_block or child.leading)):
                return None
            texts.append(text)
        if not group.is_block:
            texts = [text + ("," if index < len(texts) - 1 else "") for index, text in enumerate(texts)]
        for index, child in enumerate(group.entries):
            if child.trailing:
                texts[index] += " " + " ".join(_comment_text(comment) for comment in child.trailing)
        opening = "".join(f" {_comment_text(comment)}" for comment in group.after_open)
        body = ("  " if group.is_block else " ").join(texts)
        inner = opening + (f" {body}" if body else "")
        return f"{{{inner} }}" if inner else "{}"

    def _flat_entry(self, entry: Entry) -> str | None:
        """The entry on one line without its trailing comments, or None."""
        if entry.leading or any(map(_needs_own_end, entry.trailing)):
            return None
        text = ""
        previous: Token | Group | n.Comment | None = None
        for piece in entry.pieces:
            space = "" if previous is None else self._space(previous, piece)
            if isinstance(piece, Token):
                text += space + str(piece)
            elif isinstance(piece, n.Comment):
                if _needs_own_end(piece):
                    return None
                text += space + _comment_text(piece)
            else:
                flat = self._flat_group(piece)
                several = piece.is_block and len(piece.entries) > 1 and _first_type(entry) == "IN"
                if flat is None or several:
                    return None
                text += space + flat
            previous = piece
        return text

    # -------------------------------------------------------------- spaces

    def _is_soft(self, previous: Token | Group | n.Comment | None, piece: Token | Group | n.Comment) -> bool:
        if previous is None or not isinstance(piece, Token):
            return isinstance(previous, Token) and previous.type == "COMMA"
        if piece.type in ("AND", "OR", "EXCEPT", "WHEN"):
            return True
        return isinstance(previous, Token) and previous.type == "COMMA"

    def _space(self, previous: Token | Group | n.Comment, piece: Token | Group | n.Comment) -> str:
        if isinstance(previous, n.Comment) or isinstance(piece, n.Comment):
            return " "
        if isinstance(piece, Group):
            return " "
        kind = piece.type
        if isinstance(previous, Group):
            return "" if kind in ("COMMA", "LPAR") else " "
        before = previous.type
        if kind in ("COMMA", "RPAR", "RSQB", "COLON", "DOT") or before in ("LPAR", "LSQB", "DOT"):
            return ""
        if _offset(previous) in self.marks.unary or kind == "LSQB":
            return ""
        if kind == "LPAR":
            return "" if before in _NAMES or before == "SIZEOF" else " "
        if kind == "PLUS" and _offset(piece) in self.marks.tight:
            return ""
        if before == "PLUS" and _offset(previous) in self.marks.tight:
            return ""
        return " "
