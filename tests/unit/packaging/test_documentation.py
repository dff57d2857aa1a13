# SPDX-License-Identifier: Apache-2.0
"""What README and docs say can be done, can: examples parse, commands and options exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from o2cc.cli.o2c import o2c
from o2cc.cli.o2cc import o2cc
from o2cc.diagnostics import SourceFile
from o2cc.syntax.formatter import format_source
from o2cc.syntax.parser import parse

_ROOT = Path(__file__).parents[3]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_GUIDE = (_ROOT / "docs" / "writing-a-policy.md").read_text(encoding="utf-8")
_FENCE = re.compile(r"^```o2c(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_EXAMPLES = [(match["info"].strip(), match["text"]) for match in _FENCE.finditer(_GUIDE)]


def _whole(fragments: list[str], tests: list[str]) -> str:
    """The policy that the guide ends with: its first form with what the later steps add."""
    first = next(text for info, text in _EXAMPLES if not info)
    head, rule, rest = first.partition("    call   imports")
    return head + "\n".join([*fragments, rule + rest.rstrip(), "", *tests])


def _fragments(kind: str) -> list[str]:
    return [text for info, text in _EXAMPLES if info == f"fragment={kind}"]


def test_the_guide_has_examples_of_every_step() -> None:
    assert [info for info, _ in _EXAMPLES].count("") == 1
    assert len(_fragments("compartment")) >= 3
    assert len(_fragments("test")) == 1


def test_the_guides_first_policy_is_formatted() -> None:
    first = next(text for info, text in _EXAMPLES if not info)
    assert format_source(SourceFile("guide", first)) == first


def test_the_guides_whole_policy_parses_and_is_formatted() -> None:
    text = _whole(_fragments("compartment"), _fragments("test"))
    assert len(parse(SourceFile("guide", text)).items) >= 6
    assert format_source(SourceFile("guide", text)) == text


def _command_lines(text: str) -> Iterator[str]:
    """Indented lines (or what `$` or `#` stands before there) that run one of our commands; inline ones as well."""
    for line in text.splitlines():
        found = re.match(r" {4,}(?:[$#] )?((?:o2c|o2cc) .*)", line)
        if found and "--help" not in line:
            for part in found[1].split(";"):
                if re.match(r"\s*(o2c|o2cc) ", part):
                    yield re.split(r"\s{2,}| \|", part.strip())[0]
    yield from re.findall(r"`((?:o2c|o2cc) [^`\n]+)`", text)


def _commands() -> Iterator[tuple[str, str]]:
    for page in _PAGES:
        seen: set[str] = set()
        for line in _command_lines(page.read_text(encoding="utf-8")):
            if line not in seen:
                seen.add(line)
                yield page.name, line


@pytest.mark.parametrize(("page", "line"), list(_commands()))
def test_commands_exist_with_their_options(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"\$\([^)]*\)", "TEXT", line))
    command: click.Command = o2cc if words[0] == "o2cc" else o2c
    context = click.Context(command, info_name=words[0])
    rest = words[1:]
    while isinstance(command, click.Group) and rest and rest[0].isalpha() and rest[0].islower():
        found = command.get_command(context, rest[0])
        assert found is not None, f"{page}: there is no `{rest[0]}`"
        command, rest = found, rest[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {"-h", "--help", "--version"}
    asked = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    assert [option for option in asked if option not in known] == [], f"{page}: {line}"


def _all_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _all_commands(found, f"{name} {inner}")
    else:
        yield name, command


@pytest.mark.parametrize(
    ("name", "command"),
    [*_all_commands(o2cc, "o2cc"), *_all_commands(o2c, "o2c")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_table_of_commands_has_every_command_with_every_option(name: str, command: click.Command) -> None:
    """Catches an option that was added or renamed and is documented only in its help."""
    (row,) = re.findall(
        rf"^\| `{name}(?:`| [^a-z`].*`).*$", (_ROOT / "docs/commands.md").read_text("utf-8"), re.M
    )
    options = {max(item.opts, key=len) for item in command.params if isinstance(item, click.Option)}
    everywhere = {"--error-format", "--help", "--version"}
    assert set(re.findall(r"`(--?[\w-]+)`", row)) == options - everywhere


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_every_page_is_reached_from_the_readme() -> None:
    found = {_ROOT / "README.md"}
    for _ in _PAGES:
        for page in tuple(found):
            for name in re.findall(r"[\w-]+\.md", page.read_text(encoding="utf-8")):
                other = _ROOT / "docs" / name
                if other.exists():
                    found.add(other)
    assert set(_PAGES) - found == set()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", ["o2c@.service", "o2c-events@.service"])
def test_systemd_takes_the_unit(unit: str) -> None:
    """Catches a misspelled setting, which systemd would pass over with a message in the log."""
    path = _ROOT / "bpf_runtime/systemd" / unit
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
