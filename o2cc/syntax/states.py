# SPDX-License-Identifier: Apache-2.0
"""Looking into lark's parser: what may come next, and which braces are open on its stack."""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol

from lark import Token, UnexpectedToken


class Interactive(Protocol):
    """What is used of lark's interactive parser."""

    parser_state: Any
    lexer_thread: Any

    def feed_token(self, token: Token) -> Any:
        """Advance by one token."""

    def accepts(self) -> set[str]:
        """Terminals that may come next."""

    def copy(self, deepcopy_values: bool = True) -> Interactive:
        """An independent parser in the same state."""


def takes(interactive: Interactive, height: int, *terminals: str) -> bool:
    """Whether the parser, cut down to `height` states, takes these tokens one after the other.

    A state's table is not enough: LALR tables may reduce for a token and refuse it only then.
    """
    trial = interactive.copy(deepcopy_values=False)
    state = trial.parser_state
    del state.state_stack[height:]
    del state.value_stack[height - 1 :]
    # Without callbacks nothing is built, so that the values shared with the real parser stay untouched.
    state.parse_conf = copy(state.parse_conf)
    state.parse_conf.callbacks = {}
    try:
        for terminal in terminals:
            trial.feed_token(Token(terminal, ""))
    except UnexpectedToken:
        return False
    return True


def brace(value: object) -> int:
    """+1 for an opening brace on the parser's stack, -1 for a closing one that waits to be reduced."""
    if isinstance(value, Token):
        return (value.type == "LBRACE") - (value.type == "RBRACE")
    return 0


def open_braces(values: list[Any]) -> int:
    """How many braces are open on the parser's stack."""
    return sum(map(brace, values))


def innermost_brace(values: list[Any]) -> Token | None:
    """The opening brace of the innermost open block or list."""
    closed = 0
    for value in reversed(values):
        closed -= brace(value)
        if closed < 0:
            token: Token = value
            return token
    return None


def end_of(value: Any) -> int | None:
    """Where the text of a value on the parser's stack ends, if it has text."""
    if isinstance(value, Token):
        return value.end_pos
    meta = getattr(value, "meta", None)
    if meta is None or meta.empty:
        return None
    end: int = meta.end_pos
    return end
