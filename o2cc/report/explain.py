# SPDX-License-Identifier: Apache-2.0
"""The page of every diagnostic code: `o2cc/report/explanations/CODE.md`.

A page begins with `# CODE: title`, says what the code means and why it is an error, shows an example
and what to write instead.
"""

from __future__ import annotations

from pathlib import Path

from o2cc.diagnostics import CODE_PATTERN, DiagnosticError, did_you_mean, error

_DIRECTORY = Path(__file__).resolve().parent / "explanations"


def known_codes() -> tuple[str, ...]:
    """Every code that has a page, in order."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("O2C*.md")))


def explanation(code: str) -> str | None:
    """The page of a code as Markdown, or None when there is none."""
    if not CODE_PATTERN.match(code):
        return None
    path = _DIRECTORY / f"{code}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def title(page: str) -> str:
    """The title of a page, without the code."""
    return page.splitlines()[0].removeprefix("# ").partition(": ")[2]


def explain(code: str) -> str:
    """The page of a code given by a user, in any case and with or without `O2C`.

    `all` gives a list of all codes. Raises DiagnosticError (O2C0904) for a code that is not known.
    """
    wanted = code.strip().upper()
    if wanted == "ALL":
        return "# All codes\n\n" + "".join(
            f"- {known}: {title(explanation(known) or '')}\n" for known in known_codes()
        )
    if wanted.isdecimal():
        wanted = f"O2C{wanted.zfill(4)}"
    page = explanation(wanted)
    if page is None:
        raise DiagnosticError(
            error(
                "O2C0904",
                f"`{code}` is not the code of a diagnostic",
                help=did_you_mean(wanted, known_codes()) or "codes look like `O2C0101`",
            )
        )
    return page
