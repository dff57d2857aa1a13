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

Each program is loaded anew `--copies` times in a random order, and all are timed in turn; "less" and "more" are said
where the 95% interval of the ratio over these pairs leaves 1 out.

    python -m benchmarks.tree_speed [--sizes 50,1000] [--seeds 3,4] [--copies 30] [--vectors 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile
from scipy.stats import t as student

from o2cc.trees.bytecode import Assembler, Op
from o2cc.trees.compile import CompiledTree, Form, Subprogram, compile_tree
from o2cc.trees.importer import Imported
from o2cc.trees.interpret import Machine
from o2cc.trees.kernel import KernelRunError, LoadedTree, empty_tree
from o2cc.trees.tree import IntegerTree, Leaf, Test, Words
from o2cc.trees.vectors import make_vectors
from tests.unit.bpf.elf_sections import section_named
from tests.unit.trees.made_trees import build, fitted

LOOP = "the loop alone"
VECTORS_COUNTED = 2000
BOUND_FEATURE = 10**6
"""Number of the feature that only the bound reads; no tree has so many."""


def decode(code: bytes) -> Assembler:
    """Code that somebody else has assembled; ValueError when it has an instruction that `Op` does not."""
    result, slot = Assembler(), 0
    while slot < len(code) // 8:
        number, registers, offset, immediate = struct.unpack_from("<BBhi", code, slot * 8)
        op = Op(number)
        result.label(f"slot{slot}")
        target = None
        if op is Op.JA or op.name.startswith(("JEQ", "JNE", "JGT", "JGE", "JLT", "JLE")):
            target, offset = f"slot{slot + 1 + offset}", 0
        elif op is Op.LD_IMM64:
            immediate = immediate & 0xFFFF_FFFF | struct.unpack_from("<I", code, slot * 8 + 12)[0] << 32
        result.emit(op, registers & 15, registers >> 4, offset, immediate, target)
        slot = result.position
    return result


@dataclass(frozen=True)
class Ratio:
    """o2c's time to that of another program, and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One program on one tree; `nanoseconds` None: it could not be built or loaded, `note` says why.

    `executed`: instructions that a prediction executes, in the mean.
    """

    tree: str
    program: str
    instructions: int
    executed: float
    nanoseconds: float | None
    machine_bytes: int
    verifier: int
    note: str = ""
    ratio: Ratio | None = None


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
    """Load all over the same vectors, check every prediction, time them in turn; `copies` times, in a new order each.

    Where the kernel puts a program changes its time by up to a tenth, so that one loading is one observation: of each
    program the least of `rounds`, less the loop's.  A row's time is the median of these, and its `ratio` that of o2c's
    time to its own by pairs, the mean of the logarithms with its interval.
    """
    rows = {c.program: Row(name, c.program, 0, 0, None, 0, 0, c.note) for c in contestants}
    executed = {c.program: mean_executed(c.compiled, words) for c in contestants if c.compiled}
    random = np.random.default_rng(0)
    observed: dict[str, list[float]] = {}
    for _ in range(copies):
        with ExitStack() as stack:
            loaded: list[tuple[str, LoadedTree]] = []
            first: LoadedTree | None = None
            for c in (contestants[k] for k in random.permutation(len(contestants))):
                if c.compiled is None:
                    continue
                count = c.compiled.instruction_count
                try:
                    tree = stack.enter_context(LoadedTree(c.compiled, len(words), beside=first))
                except KernelRunError as problem:
                    note = f"{problem}: {problem.log[-1:]}"
                    rows[c.program] = Row(name, c.program, count, 0, None, 0, 0, note)
                    continue
                if c.program != LOOP and not (tree.predict(words) == expected).all():
                    raise SystemExit(f"{c.program} on {name} predicts wrongly")
                first = first or tree
                loaded.append((c.program, tree))
                effort = tree.effort()
                rows[c.program] = Row(
                    name, c.program, count, executed[c.program], None, effort.machine_bytes, effort.processed
                )
            least = {program: 1e9 for program, _ in loaded}
            for _ in range(rounds):
                for program, tree in loaded:
                    least[program] = min(least[program], tree.nanoseconds_with_loop(0.02))
            for program, time in least.items():
                observed.setdefault(program, []).append(time - least[LOOP])
    return [
        replace(
            row,
            nanoseconds=float(np.median(observed[program])),
            ratio=ratio(observed["o2c"], observed[program]),
        )
        if program in observed
        else row
        for program, row in rows.items()
        if program != LOOP
    ]


def mean_executed(compiled: CompiledTree, words: Words) -> float:
    """Instructions that a prediction executes, in the mean over the first vectors."""
    machine = Machine(compiled)
    return float(np.mean([machine.run(row)[1] for row in words[:VECTORS_COUNTED].tolist()]))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Our time to theirs over paired observations, with its 95% interval by Student's t; None of fewer than two pairs."""
    logarithms = np.log(np.array(ours) / np.array(theirs))
    if len(logarithms) < 2:
        return None
    mean = float(logarithms.mean())
    half = float(student.ppf(0.975, len(logarithms) - 1) * logarithms.std(ddof=1) / len(logarithms) ** 0.5)
    return Ratio(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)))


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
            code = decode(build_c(as_c(tree, slots, annotated=annotated), clang))
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


def make_tree(nodes: int, seed: int) -> Imported:
    """A tree of about so many nodes: fitted ones up to 12,000 nodes, made ones above and very small ones."""
    if nodes <= 10 or nodes > 12_000:
        return build(nodes // 2, 200 if nodes > 1000 else 5, 12, seed)
    return fitted(int(nodes * 0.6), 24, 6, seed)


def verdict(row: Row, ours: Row) -> str:
    """Whether our program has and executes fewer instructions and takes less time than a peer's, the latter decided by
    the interval.  That a table's walker has fewer says nothing."""
    if row.ratio is None:
        return ""
    fewer = ours.executed < row.executed and (row.program == "table" or ours.instructions < row.instructions)
    less = "less" if row.ratio.high < 1 else "more" if row.ratio.low > 1 else "undecided"
    return f"{'fewer' if fewer else 'NOT fewer'}, {less}"


def show(rows: Sequence[Row]) -> None:
    """Print the lines of one tree."""
    ours, bound = rows[0], rows[-1].nanoseconds
    for row in rows:
        if row.nanoseconds is None:
            print(f"{row.tree:<22}{row.program:<9}{row.instructions:>13}  {row.note}", flush=True)
            continue
        to_bound = row.nanoseconds / bound if bound else float("nan")
        r = row.ratio
        compared = f"{r.mean:>8.3f} ({r.low:.3f} to {r.high:.3f})" if r and row is not ours else ""
        said = verdict(row, ours) if row.program in ("m2cgen", "tl2cgen", "table") else ""
        print(
            f"{row.tree:<22}{row.program:<9}{row.instructions:>13}{row.executed:>9.1f}{row.nanoseconds:>9.2f}{to_bound:>8.2f}"
            f"{row.machine_bytes:>11}{row.verifier:>10} {compared:<26} {said}".rstrip(),
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10,50,110,200,400,1000,2000,4000,10000,25000")
    parser.add_argument("--seeds", default="3", help="one tree of each size for each of these")
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clang = next(
        (found for found in map(shutil.which, ("clang", "clang-19", "clang-16", "clang-14")) if found), None
    )
    print(f"clang: {clang or 'not on this machine, its programs are left out'}")
    print(
        f"{'tree':<22}{'program':<9}{'instructions':>13}{'executed':>9}{'ns':>9}{'/bound':>8}{'JIT bytes':>11}{'verifier':>10}"
        f" {'o2c to it, 95% interval':<26} o2c's instructions, time"
    )
    rows: list[Row] = []
    for size in map(int, arguments.sizes.split(",")):
        for seed in map(int, arguments.seeds.split(",")):
            imported = make_tree(size, seed)
            vectors, _, _ = make_vectors(imported.tree, arguments.vectors, 1)
            path = np.array(imported.tree.depths)[imported.tree.apply(vectors)].mean()
            name = f"{len(imported.tree.nodes)} nodes, path {path:.1f}"
            new = peers(name, imported, vectors, clang, arguments.rounds, arguments.copies)
            show(new)
            rows += new
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
