# SPDX-License-Identifier: Apache-2.0
"""Random texts derived from the grammar itself, so that tests reach every form of the language."""

from __future__ import annotations

from functools import cache
from random import Random

from hypothesis import strategies as st
from lark.grammar import NonTerminal, Rule, Symbol

from o2cc.syntax.parser import grammar

_SAMPLES = {
    "NAME": ("skb", "len", "sk_buff", "sctp_rcv", "p", "x9", "size", "entry", "head", "whole", "free"),
    "GLOB": ("sctp_*", "*", "ip?_x*"),
    "STRING": ('"sctp"', '"nft_*"', '"a b"', '""'),
    "INT": ("0", "1", "64", "0x1F", "1_000", "4096"),
    "RATIO": ("0.99", "1.0"),
    "COMPARE": ("==", "!=", "<", "<=", ">", ">="),
    "SHIFT": ("<<", ">>"),
    "PRODUCT": ("*", "/", "%"),
    "NOT": ("!", "~"),
}
_GAPS = (
    " ",
    " ",
    " ",
    " ",
    "\n",
    "  ",
    "\t",
    "\n\n",
    " /* c */ ",
    " // c\n",
    "\n// c\n",
    "\n\n\n/* a\n b */\n",
    "\r\n",
)
MAX_STEPS = 400
_ITEMS = (
    "use",
    "const",
    "set_def",
    "shared_types",
    "caps_def",
    "extern_fn",
    "extern_entry",
    "compartment",
    "test",
)
_CALM = frozenset(
    f"_{name}"
    for name in [
        "or",
        "and",
        "comparison",
        "bits_or",
        "bits_xor",
        "bits_and",
        "shift",
        "sum",
        "product",
        "unary",
        "param",
    ]
)
_WEIGHTS = (1, 2, 1, 1, 2, 4, 2, 8, 4)


@cache
def _rules() -> dict[str, list[Rule]]:
    by_origin: dict[str, list[Rule]] = {}
    for rule in grammar().rules:
        by_origin.setdefault(rule.origin.name, []).append(rule)
    return by_origin


@cache
def _fixed() -> dict[str, str]:
    return {terminal.name: terminal.pattern.value for terminal in grammar().terminals}


@cache
def _heights() -> dict[str, int]:
    """Least height of a derivation of each nonterminal."""
    heights: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for name, rules in _rules().items():
            known = [height for rule in rules if (height := _rule_height(rule, heights)) is not None]
            if known and min(known) < heights.get(name, 1_000):
                heights[name] = min(known)
                changed = True
    return heights


def _rule_height(rule: Rule, heights: dict[str, int]) -> int | None:
    below = [heights.get(s.name) for s in rule.expansion if isinstance(s, NonTerminal)]
    if any(height is None for height in below):
        return None
    return 1 + max((height for height in below if height is not None), default=0)


def _derive(random: Random, start: str) -> list[str]:
    tokens: list[str] = []
    stack: list[Symbol] = [NonTerminal(start)]
    steps = 0
    while stack:
        symbol = stack.pop()
        if not isinstance(symbol, NonTerminal):
            samples = _SAMPLES.get(symbol.name)
            tokens.append(random.choice(samples) if samples else _fixed()[symbol.name])
            continue
        rules = _rules()[symbol.name]
        steps += 1
        if steps > MAX_STEPS:
            least = _heights()[symbol.name]
            rules = [rule for rule in rules if _rule_height(rule, _heights()) == least]
        elif symbol.name in _CALM and random.random() < 0.85:
            rules = rules[:1]  # the plain one; expressions would grow without end
        stack.extend(reversed(random.choice(rules).expansion))
    return tokens


def derive_text(seed: int) -> str:
    """A text with comments and odd spacing between tokens that the grammar derives.

    It need not parse: a name may be read as a keyword, and some rules are not in the grammar.
    """
    random = Random(seed)
    items = random.choices(_ITEMS, weights=_WEIGHTS, k=random.randint(1, 4))
    tokens = [token for item in items for token in _derive(random, item)]
    return "".join(random.choice(_GAPS) + token for token in tokens) + random.choice(_GAPS)


def policy_texts() -> st.SearchStrategy[str]:
    """Texts of `derive_text`; choices are uniform, which Hypothesis's own are not."""
    return st.integers(0, 1 << 32).map(derive_text)
