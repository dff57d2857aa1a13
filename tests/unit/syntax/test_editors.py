# SPDX-License-Identifier: Apache-2.0
"""The editors' highlighting knows the keywords of the grammar, and their problem matchers our concise format."""

from __future__ import annotations

import json
import re
from pathlib import Path

from o2cc.diagnostics import SourceFile, error
from o2cc.report.concise import render_concise
from o2cc.syntax.parser import grammar

_EDITORS = Path(__file__).parents[3] / "editors"
_KEYWORDS = {t.pattern.value for t in grammar().terminals if t.pattern.value.isalpha()}


def test_vim_knows_every_keyword() -> None:
    text = (_EDITORS / "vim" / "syntax" / "o2c.vim").read_text(encoding="utf-8")
    listed = set(
        re.findall(r"[A-Za-z]+", " ".join(re.findall(r"^syntax (?:keyword|match) .*$", text, re.MULTILINE)))
    )
    assert _KEYWORDS - listed == set()


def test_textmate_grammar_knows_every_keyword() -> None:
    text = (_EDITORS / "vscode" / "syntaxes" / "o2c.tmLanguage.json").read_text(encoding="utf-8")
    listed = set(re.findall(r"[A-Za-z]+", " ".join(p.get("match", "") for p in json.loads(text)["patterns"])))
    assert _KEYWORDS - listed == set()


def test_textmate_patterns_compile() -> None:
    text = (_EDITORS / "vscode" / "syntaxes" / "o2c.tmLanguage.json").read_text(encoding="utf-8")
    for pattern in json.loads(text)["patterns"]:
        for key in ("match", "begin", "end"):
            if key in pattern:
                re.compile(pattern[key])


def test_problem_matcher_reads_the_concise_format() -> None:
    package = json.loads((_EDITORS / "vscode" / "package.json").read_text(encoding="utf-8"))
    (matcher,) = package["contributes"]["problemMatchers"]
    pattern = matcher["pattern"]
    source = SourceFile("dir/p.o2c", "use a\nuse b\n")
    line = render_concise(
        [error("O2C0101", "expected `x`", source.span(10, 11))], {source.name: source}
    ).rstrip()
    match = re.match(pattern["regexp"], line)
    assert match is not None
    assert [match[pattern[key]] for key in ("file", "line", "column", "severity", "code", "message")] == [
        "dir/p.o2c",
        "2",
        "5",
        "error",
        "O2C0101",
        "expected `x`",
    ]
