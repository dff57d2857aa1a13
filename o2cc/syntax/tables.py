# SPDX-License-Identifier: Apache-2.0
"""The parser's tables, made once for a grammar and kept in the user's cache directory.

lark needs longer to make LALR tables than to parse a policy.  They are kept as JSON under the hash of everything that
they are made from.  What is not there, cannot be read, or could have been written by another user is made anew: the
cache is never needed and never trusted further than the user's own files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

from o2cc.files import read_own_file, write_own_file
from o2cc.resources import cache_directory

_FORMAT = 1


def cached_parser(text: str, build: Callable[[], Lark], postlex: object) -> Lark:
    """The parser that ``build`` makes of a grammar's text, from the cache if its tables are there.

    ``postlex`` is what `build` gives lark under that name: an object, and so not part of the tables.
    """
    path = _path(text)
    if path is None:
        return build()
    try:
        document = json.loads(read_own_file(path))
        data, memo = document["data"], {int(key): value for key, value in document["memo"].items()}
        parser = data["parser"]["parser"]
        parser["states"] = {int(state): actions for state, actions in parser["states"].items()}
        load: Callable[..., Lark] = Lark._load_from_dict
        return load(data, memo, postlex=postlex)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError):
        made = build()
        _keep(made, path)
        return made


def _path(text: str) -> Path | None:
    """Where the tables of a grammar are kept; None without a home directory."""
    key = hashlib.sha256(f"{_FORMAT}\0{lark.__version__}\0{text}".encode()).hexdigest()
    try:
        return cache_directory() / "grammar" / f"{key[:32]}.json"
    except RuntimeError:  # no home directory
        return None


def _keep(parser: Lark, path: Path) -> None:
    data: dict[str, Any]
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    data["options"].pop("postlex", None)
    write_own_file(path, json.dumps({"data": data, "memo": memo}, separators=(",", ":")))
