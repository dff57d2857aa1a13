# SPDX-License-Identifier: Apache-2.0
"""Tokens of the IR's text form.  Comments (``;`` to the end of the line) and white space are dropped."""

from __future__ import annotations

import re
from enum import Enum, auto


class Kind(Enum):
    """What a token is."""

    VALUE = auto()  # %name
    VARIABLE = auto()  # $name
    CONSTANT = auto()  # offset(...), size(...), const(...)
    NUMBER = auto()  # 5, -8, 0x18
    NAME = auto()  # names and keywords; dots and hyphens inside
    STRING = auto()  # as in JSON
    PUNCTUATION = auto()
    WRONG = auto()  # one character that begins no token
    END = auto()


_TOKEN = re.compile(
    r"""
    (?: [ \t\r\n\f]+ | ;[^\n]* )
  | (?P<VALUE> %[A-Za-z0-9_.]+ )
  | (?P<NUMBER> -?0[xX][0-9a-fA-F]+ | -?[0-9]+ )
  | (?P<CONSTANT> (?:offset|size|const)\([^()\n;]*\) )
  | (?P<NAME> [A-Za-z_][A-Za-z0-9_.$]*(?:-(?=[A-Za-z])[A-Za-z0-9_.$]+)* )
  | (?P<VARIABLE> \$[A-Za-z0-9_.]+ )
  | (?P<STRING> "(?:[^"\\\n]|\\.)*" )
  | (?P<PUNCTUATION> -> | \.\. | [{}()\[\],:=+.] )
  | (?P<WRONG> . )
    """,
    re.VERBOSE | re.DOTALL,
)

_KINDS = {kind.name: kind for kind in Kind}


def tokenize(text: str) -> tuple[list[Kind], list[str], list[int]]:
    """Kinds, texts and offsets of all tokens, in parallel lists that end with two tokens of kind `END`.

    Two, so that looking one token ahead needs no test.
    """
    kinds: list[Kind] = []
    texts: list[str] = []
    starts: list[int] = []
    for match in _TOKEN.finditer(text):
        group = match.lastgroup
        if group is not None:
            kinds.append(_KINDS[group])
            texts.append(match.group())
            starts.append(match.start())
    for _ in range(2):
        kinds.append(Kind.END)
        texts.append("")
        starts.append(len(text))
    return kinds, texts, starts
