# SPDX-License-Identifier: Apache-2.0
"""Compiled trees beside peers: same trees, same vectors, same kernel, one run.

Peers, all called by the same loop (`o2cc.trees.kernel.driver`):

    m2cgen    nested ifs as m2cgen writes them, with exact integers for features and thresholds
    tl2cgen   the same with tl2cgen's annotations of likely branches (its test for missing values left out,
              which is in its favour: no word is missing here)
    table     a loop that walks the tree as data
    bound     the same path for every vector, every test one comparison of one register with an immediate:
              the empty program plus the mean path length in compare-and-jump, with the same mispredictions

The C is built by `clang -O2 -target bpf -mcpu=v3`; where there is no clang this says so and goes on. Needs root.
Times come from BPF_PROG_TEST_RUN on the running kernel; under emulation they mean nothing.

    python benchmarks/tree_speed.py [--sizes 10,50,1000] [--vectors 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

from o2cc.trees.bytecode import Assembler
from o2cc.trees.compile import CompiledTree, Form, Subprogram, compile_tree
from o2cc.trees.importer import Imported
from o2cc.trees.kernel import KernelRunError, LoadedTree, empty_tree
from o2cc.trees.tree import IntegerTree, Leaf, Test, Words
from o2cc.trees.vectors import make_vectors
from tests.unit.bpf.elf_sections import section_named
from tests.unit.trees.made_trees import build, fitted

LOOP = "the loop alone"
BOUND_FEATURE = 10**6
"""Number of the feature that only the bound reads; no tree has so many."""


class Encoded(Assembler):
    """Code that somebody else has assembled."""

    def __init__(self, code: bytes) -> None:
        super().__init__(position=len(code) // 8)
        self.code = code

    def encode(self, outside: object = None) -> bytes:
        return self.code


@dataclass(frozen=True)
class Row:
    """One program on one tree; `nanoseconds` None: it could not be built or loaded, `note` says why."""

    tree: str
    program: str
    instructions: int
    nanoseconds: float | None
    machine_bytes: int
    verifier: int
    note: str = ""


def weights(tree: IntegerTree) -> list[int]:
    """Samples that come to each node."""
    result = [node.samples if isinstance(node, Leaf) else 0 for node in tree.nodes]
    for number in sorted(range(len(tree.nodes)), key=lambda n: -tree.depths[n]):
        node = tree.nodes[number]
        if isinstance(node, Test):
            result[number] = result[node.low] + result[node.high]
    return result


def as_c(tree: IntegerTree, slots: dict[int, int], *, annotated: bool) -> str:
    """The tree as nested ifs."""
    heavy = weights(tree)
    lines = ["unsigned long long predict(const unsigned long long *input) {", "  unsigned int var0;"]
    work: list[int | str] = [0]
    while work:
        item = work.pop()
        if isinstance(item, str):
            lines.append(item)
            continue
        node = tree.nodes[item]
        if isinstance(node, Leaf):
            lines.append(f"var0 = {node.label};")
            continue
        passes = f"input[{slots[node.feature]}] <= {node.threshold}ULL"
        condition = passes if node.threshold >= 0 else "0"
        if annotated:
            likely = int(heavy[node.low] >= heavy[node.high])
            condition = f"__builtin_expect(!!({condition}), {likely})"
        work += ["}", node.high, "} else {", node.low, f"if ({condition}) {{"]
    return "\n".join([*lines, "  return var0;", "}"]) + "\n"


def build_c(source: str, compiler: str) -> bytes:
    """Code of the function; CalledProcessError when clang refuses."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tree.c"
        path.write_text(source)
        flags = ["-O2", "-target", "bpf", "-mcpu=v3", "-fbracket-depth=100000", "-c"]
        subprocess.run(
            [compiler, *flags, str(path), "-o", str(path.with_suffix(".o"))],
            check=True,
            capture_output=True,
            timeout=600,
        )
        with path.with_suffix(".o").open("rb") as file:
            return bytes(section_named(ELFFile(file), ".text").data())


def bound_tree(tree: IntegerTree) -> tuple[IntegerTree, list[int]]:
    """The same shape over one feature, the place of the leaf from left to right; and that place by leaf."""
    order: list[int] = []
    work = [0]
    while work:
        number = work.pop()
        node = tree.nodes[number]
        if isinstance(node, Test):
            work += (node.high, node.low)
        else:
            order.append(number)
    place = [0] * len(tree.nodes)
    for position, number in enumerate(order):
        place[number] = position
    last = list(place)
    for number in sorted(range(len(tree.nodes)), key=lambda n: -tree.depths[n]):
        node = tree.nodes[number]
        if isinstance(node, Test):
            last[number] = last[node.high]
    nodes = tuple(
        Test(BOUND_FEATURE, last[node.low], node.low, node.high, float(last[node.low]))
        if isinstance(node, Test)
        else node
        for node in tree.nodes
    )
    return IntegerTree(nodes, tree.classes, tree.features[:1]), place


@dataclass(frozen=True)
class Contestant:
    """A program; `note` instead of one says why there is none."""

    program: str
    compiled: CompiledTree | None
    note: str = ""


def compete(
    name: str,
    contestants: Sequence[Contestant],
    words: Words,
    expected: Sequence[int],
    rounds: int,
    copies: int,
) -> list[Row]:
    """Load all over the same vectors, check every prediction, then time them in turn; the least of all rounds counts.

    Where the kernel puts a program changes its time by up to a tenth, so that each is loaded `copies` times.
    """
    rows: dict[str, Row] = {}
    loaded: list[tuple[str, LoadedTree]] = []
    least: dict[str, float] = {}
    first: LoadedTree | None = None
    with ExitStack() as stack:
        for c in [*contestants] * copies:
            if c.compiled is None:
                rows[c.program] = Row(name, c.program, 0, None, 0, 0, c.note)
                continue
            count = c.compiled.instruction_count
            try:
                tree = stack.enter_context(LoadedTree(c.compiled, len(words), beside=first))
            except KernelRunError as problem:
                rows[c.program] = Row(name, c.program, count, None, 0, 0, f"{problem}: {problem.log[-1:]}")
                continue
            if c.program != LOOP and not (tree.predict(words) == expected).all():
                raise SystemExit(f"{c.program} on {name} predicts wrongly")
            first = first or tree
            loaded.append((c.program, tree))
            effort = tree.effort()
            rows[c.program] = Row(name, c.program, count, None, effort.machine_bytes, effort.processed)
        for _ in range(rounds):
            for program, tree in loaded:
                least[program] = min(least.get(program, 1e9), tree.nanoseconds_with_loop(0.05))
    return [
        replace(row, nanoseconds=least[program] - least[LOOP]) if program in least else row
        for program, row in rows.items()
        if program != LOOP
    ]


def peers(
    name: str, imported: Imported, vectors: Words, clang: str | None, rounds: int, copies: int
) -> list[Row]:
    """All programs on one tree."""
    tree = imported.tree
    shape, place = bound_tree(tree)
    slots = {feature: slot for slot, feature in enumerate(tree.used_features)}
    features = (*slots, BOUND_FEATURE)
    leaves = np.array(place, dtype=np.uint64)[tree.apply(vectors)]
    words = np.column_stack([vectors[:, list(slots)], leaves])
    contestants = [Contestant("o2c", compile_tree(tree, features=features))]
    for program, annotated in (("m2cgen", False), ("tl2cgen", True)):
        if clang is None:
            contestants.append(Contestant(program, None, "no clang on this machine"))
            continue
        try:
            code = Encoded(build_c(as_c(tree, slots, annotated=annotated), clang))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
            lines = (getattr(problem, "stderr", None) or b"timeout").decode().splitlines()
            reason = next((line for line in lines if "error" in line), lines[0])
            contestants.append(Contestant(program, None, f"clang: {reason[:100]}"))
            continue
        contestants.append(
            Contestant(program, CompiledTree(Form.BRANCHES, (Subprogram("tree", code),), features, b"", ()))
        )
    contestants.append(Contestant("table", compile_tree(tree, form=Form.TABLE, features=features)))
    contestants.append(Contestant("bound", compile_tree(shape, features=features, selects=False)))
    contestants.append(Contestant(LOOP, CompiledTree(Form.BRANCHES, empty_tree(), features, b"", ())))
    return compete(name, contestants, words, imported.reference.predict(vectors).tolist(), rounds, copies)


def make_tree(nodes: int) -> Imported:
    """A tree of about so many nodes: fitted ones up to 12,000 nodes, made ones above and very small ones."""
    if nodes <= 10 or nodes > 12_000:
        return build(nodes // 2, 200 if nodes > 1000 else 5, 12, 6)
    return fitted(int(nodes * 0.6), 24, 6, 3)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10,50,200,1000,10000,25000")
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clang = next(
        (found for found in map(shutil.which, ("clang", "clang-19", "clang-16", "clang-14")) if found), None
    )
    print(f"clang: {clang or 'not on this machine, its programs are left out'}")
    print(
        f"{'tree':<22}{'program':<10}{'instructions':>13}{'ns':>9}{'/bound':>8}{'JIT bytes':>11}{'verifier':>10}"
    )
    rows: list[Row] = []
    for size in map(int, arguments.sizes.split(",")):
        imported = make_tree(size)
        vectors, _, _ = make_vectors(imported.tree, arguments.vectors, 1)
        path = np.array(imported.tree.depths)[imported.tree.apply(vectors)].mean()
        name = f"{len(imported.tree.nodes)} nodes, path {path:.1f}"
        new = peers(name, imported, vectors, clang, arguments.rounds, arguments.copies)
        bound = new[-1].nanoseconds
        for row in new:
            if row.nanoseconds is None:
                print(f"{row.tree:<22}{row.program:<10}{row.instructions:>13}  {row.note}")
            else:
                ratio = row.nanoseconds / bound if bound else float("nan")
                print(
                    f"{row.tree:<22}{row.program:<10}{row.instructions:>13}{row.nanoseconds:>9.1f}{ratio:>8.2f}"
                    f"{row.machine_bytes:>11}{row.verifier:>10}",
                    flush=True,
                )
        rows += new
    if arguments.json:
        arguments.json.write_text(json.dumps([row.__dict__ for row in rows], indent=1))


if __name__ == "__main__":
    main()
