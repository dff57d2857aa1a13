# SPDX-License-Identifier: Apache-2.0
"""Tests that are one text file each: the passes to run, a module, and the module expected after them.

The first line is ``; passes: name,name``.  A line ``; expect`` ends the input; what follows must be the printed
result, exactly.  A test of an error has no such line; the offending line ends in ``; error: CODE message`` instead.
`O2C_BLESS=1` writes the results into the files.
"""

import os
import re
from pathlib import Path

import pytest

from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile
from o2cc.ir.parser import parse_module
from o2cc.ir.printer import print_module
from o2cc.ir.verifier import require_valid
from o2cc.passes.manager import PassContext, parse_pipeline, run_pipeline
from o2cc.passes.registry import PASSES

FILES = sorted((Path(__file__).parent / "filetests").glob("*.ir"))
DIVIDER = "; expect\n"


def shown(diagnostic: Diagnostic) -> str:
    return f"{diagnostic.code} {diagnostic.message}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = re.match(r"; passes:(.*)\n", text)
    assert header is not None, "the first line must be `; passes: ...`"
    given, divider, expected = text.partition(DIVIDER)
    source = SourceFile(path.name, given)
    wanted = {
        number: comment.strip()
        for number, line in enumerate(given.splitlines(), 1)
        for comment in line.split("; error:")[1:]
    }
    if wanted:
        with pytest.raises(DiagnosticError) as raised:
            require_valid(parse_module(source, own_spans=True))
        found: dict[int, str] = {}
        for diagnostic in raised.value.diagnostics:
            assert diagnostic.primary is not None
            found[source.position(diagnostic.primary.span.start)[0]] = shown(diagnostic)
        assert found == wanted
        return
    module = parse_module(source)
    passes = parse_pipeline(header.group(1), PASSES) if header.group(1).strip() else ()
    result = print_module(run_pipeline(module, passes, PassContext()))
    if os.environ.get("O2C_BLESS"):
        path.write_text(given + DIVIDER + result, encoding="utf-8")
    else:
        assert divider, "this file has no `; expect`"
        assert result == expected


def test_there_are_files() -> None:
    assert len(FILES) >= 8
