# SPDX-License-Identifier: Apache-2.0
"""What to do about typical mistakes: habits from C, Python and other policy languages."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

_LAST_WORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_CLAUSES = frozenset(
    [
        "require",
        "lends",
        "gives",
        "takes",
        "transfer",
        "writes",
        "reads",
        "frees",
        "allocates",
        "returns",
        "stores",
        "calls",
        "shares",
        "pure",
        "on",
    ]
)
_WORD_OPERATORS = {"and": "&&", "or": "||", "AND": "&&", "OR": "||", "mod": "%", "xor": "^", "eq": "=="}


@dataclass(frozen=True)
class Mistake:
    """An unexpected token: its text and type, the text before it, and the terminals that were possible."""

    word: str
    type: str
    before: str
    accepted: Set[str]

    @property
    def previous_word(self) -> str:
        """The word directly before, or an empty text."""
        match = _LAST_WORD.search(self.before)
        return match.group(1) if match else ""

    def could_be(self, *terminals: str) -> bool:
        """Whether all of these terminals were possible."""
        return self.accepted >= set(terminals)


def hint(mistake: Mistake) -> str | None:
    """Help for the mistake, if it is a known one."""
    return _operator_hint(mistake) or _type_hint(mistake) or _form_hint(mistake)


def _operator_hint(mistake: Mistake) -> str | None:
    word = mistake.word
    if word == ">" and mistake.before.endswith("-"):
        return "fields are reached with `.`, also through pointers"
    if mistake.type == "COMPARE":
        return "comparisons do not chain; write `a < b && b < c`"
    if word in _WORD_OPERATORS and mistake.could_be("AND", "OR"):
        return f"write `{_WORD_OPERATORS[word]}`"
    if mistake.previous_word in ("not", "NOT"):
        return "write `!` for `not`"
    if word == "in" and mistake.could_be("AND"):
        return "write `x == 1 || x == 2`"
    if word == "?" and mistake.could_be("AND", "OR"):
        return "there is no conditional operator; write two conditions"
    return None


def _type_hint(mistake: Mistake) -> str | None:
    word = mistake.word
    in_parameters = mistake.could_be("RPAR", "COMMA")
    if in_parameters and (word == "*" or mistake.previous_word in ("struct", "union")):
        return "parameters are written `name` or `name: struct T`; a pointer needs no `*`"
    if word == "*" and mistake.could_be("OWNED"):
        return "objects are written `p: struct T`; a pointer needs no `*`"
    if mistake.could_be("STRUCT", "UNION") and _NAME.match(word):
        return f"write `struct {word}`"
    if word == "." and mistake.could_be("LBRACE"):
        return "fields stand in braces, as in `struct sock { sk_err }`"
    return None


def _form_hint(mistake: Mistake) -> str | None:
    word = mistake.word
    if word in _CLAUSES and mistake.could_be("LBRACE") and not mistake.could_be("REQUIRE"):
        return f"clauses stand in braces, as in `{{ {word} ... }}`"
    if "*" in word and mistake.could_be("LBRACE"):
        return "patterns stand in braces, as in `{ sctp_* }`"
    if "*" in word and mistake.could_be("COMMA", "EXCEPT"):
        return "patterns stand in braces, as in `{ sctp_* }`"
    if mistake.could_be("FN", "ENTRY") and _NAME.match(word):
        return f"write `extern fn {word}`"
    if mistake.type == "INT" and mistake.could_be("AT", "UNTIL"):
        return f"write `at most {word} s`"
    if mistake.type == "INT" and mistake.could_be("PRIVATE"):
        return f"write `private {word} MiB`"
    if "STRING" in mistake.accepted and "NAME" not in mistake.accepted and _NAME.match(word):
        return f'write `"{word}"`'
    unquoted = word.strip('"')
    if mistake.type == "STRING" and "NAME" in mistake.accepted and _NAME.match(unquoted):
        return f"write `{unquoted}` without quotes"
    return None
