# SPDX-License-Identifier: Apache-2.0
"""Compiled trees in a real kernel: the verifier accepts them, and every prediction is the reference's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o2cc.bpf.emit import emit_object
from o2cc.bpf.info import read
from o2cc.bpf.layout import Layout as ObjectLayout
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.trees.check import InKernel, NotInKernel, check_tree
from o2cc.trees.compile import Form
from o2cc.trees.features import LAYOUT_FIELDS, Objects, WordClass, extract
from o2cc.trees.importer import Imported
from o2cc.trees.kernel import LoadedTree
from o2cc.trees.lower import lower_tree
from o2cc.trees.tree import Feature, FeatureKind, IntegerTree
from tests.unit.trees.made_trees import build
from tests.vm.guest.bpf_calls import loaded

TREES = [
    pytest.param(5, 3, 3, False, Form.BRANCHES, 10_000, id="ten nodes"),
    pytest.param(50, 6, 4, False, Form.BRANCHES, 10_000, id="a hundred nodes"),
    pytest.param(500, 12, 6, False, Form.BRANCHES, 20_000, id="a thousand nodes"),
    pytest.param(200, 8, 5, True, Form.BRANCHES, 5_000, id="a chain of two hundred tests"),
    pytest.param(4999, 60, 9, False, None, 10_000, id="ten thousand nodes", marks=pytest.mark.full),
    pytest.param(
        12_499, 400, 20, False, Form.SPLIT, 5_000, id="twenty-five thousand", marks=pytest.mark.full
    ),
]


def outcome(imported: Imported, vectors: int, form: Form | None) -> InKernel:
    result = check_tree(imported, vectors, 1, in_kernel=True, form=form)
    if isinstance(result.kernel, NotInKernel):
        pytest.fail("\n".join([result.kernel.reason, *result.kernel.log]))
    assert result.all_agreed, result.kernel
    assert isinstance(result.kernel, InKernel)
    assert result.kernel.agreement.vectors == vectors
    return result.kernel


@pytest.mark.parametrize(("tests", "features", "classes", "chain", "form", "vectors"), TREES)
def test_the_kernel_predicts_as_scikit_learn_does(
    tests: int, features: int, classes: int, chain: bool, form: Form | None, vectors: int
) -> None:
    run = outcome(build(tests, features, classes, 5, chain=chain), vectors, form)
    print(f"verifier {run.effort.processed}, {run.effort.machine_bytes} bytes, {run.nanoseconds:.0f} ns")


def test_the_table_predicts_as_scikit_learn_does() -> None:
    outcome(build(450, 12, 6, 3), 5_000, Form.TABLE)
    outcome(build(200, 8, 5, 4, chain=True), 2_000, Form.TABLE)


def test_a_wrong_tree_is_noticed_by_the_kernel_run() -> None:
    from o2cc.trees.compile import compile_tree

    right, other = build(50, 4, 3, 7), build(50, 4, 3, 8)
    vectors = np.random.default_rng(1).integers(0, 2**64 - 1, (2000, 4), dtype=np.uint64)
    compiled = compile_tree(other.tree)
    with LoadedTree(compiled, len(vectors)) as loaded:
        got = loaded.predict(np.ascontiguousarray(vectors[:, list(compiled.features)]))
    assert (got == other.tree.predict(vectors)).all()
    assert (got != right.tree.predict(vectors)).any()


WORDS_LOOKED_AT = 200


def classify_init_task(tree: IntegerTree) -> ir.Module:
    """A program that classifies `init_task` by a tree, and keeps its words and their classes."""
    code = Builder()
    address = code.symbol("init_task")
    size = 8 * WORDS_LOOKED_AT
    code.store("result", 0, "address", address)
    code.store("result", 0, "outcome", code.call("tree", address, size, 0x2000))
    counter = code.assign("i", 0)
    code.jump("more")
    code.start("more")
    code.branch(code.binary(ir.BinaryOperator.ULT, counter, WORDS_LOOKED_AT + 8), "one", "done")
    code.start("one")
    offset = code.binary(ir.BinaryOperator.SHL, counter, 3)
    code.store("words", counter, "word", code.read(8, code.add(address, offset)))
    code.store("words", counter, "kind", code.call("word_class", address, size, counter))
    code.assign("i", code.add(counter, 1))
    code.jump("more")
    code.start("done")
    code.give_back(0)
    lowered = lower_tree(tree)
    tables = (
        ir.Table("result", (("address", 8), ("outcome", 8)), (), 1, writable=True),
        ir.Table("words", (("word", 8), ("kind", 8)), (), WORDS_LOOKED_AT + 8, writable=True),
    )
    hook = ir.Hook("classify", ir.HookKind.SYSCALL, "", code.finish())
    return ir.Module("m", (), tables=(*lowered.tables, *tables), functions=lowered.functions, hooks=(hook,))


def test_a_tree_in_a_policy_classifies_kernel_memory_as_training_does(tmp_path: Path) -> None:
    features = (
        Feature(FeatureKind.SIZE),
        Feature(FeatureKind.CACHE_FLAGS),
        *(Feature(FeatureKind.WORD_CLASS, index) for index in range(20, 60)),
        *(Feature(FeatureKind.WORD, index) for index in range(10)),
    )
    made = build(150, len(features), 6, 5, pool=[k + 0.5 for k in range(12)] + [2.0**20, 2.0**63, 1600.0])
    tree = IntegerTree(made.tree.nodes, made.tree.classes, features)
    data = emit_object(classify_init_task(tree), layout=ObjectLayout.SITE, sources={}).data
    with loaded(data, tmp_path, "audition") as object_:
        object_.run("classify", bytes(8))
        tables = {table.name: table for table in read(data).tables}
        section = tables["words"].section
        image = object_.section(section, max(t.offset + t.stride * t.length for t in tables.values()))

    def column(table: str, name: str) -> list[int]:
        info = tables[table]
        offset = next(offset for known, offset, _ in info.columns if known == name)
        places = (info.offset + row * info.stride + offset for row in range(info.length))
        return [int.from_bytes(image[place : place + 8], "little") for place in places]

    words, kinds = column("words", "word"), column("words", "kind")
    layout = [column("areas", name)[0] for name in LAYOUT_FIELDS]
    lines = [line.split()[:3] for line in Path("/proc/kallsyms").read_text().splitlines()]
    wanted = ("_stext", "_etext", "_end", "init_task")
    symbols = {name: int(address, 16) for address, _, name in lines if name in wanted}
    assert layout[:3] == [symbols["_stext"], symbols["_etext"], symbols["_end"]]
    address = column("result", "address")[0]
    assert address == symbols["init_task"]
    objects = Objects(
        np.array([words], dtype=np.uint64),
        np.arange(len(words))[None, :] < WORDS_LOOKED_AT,
        np.array([address], dtype=np.uint64),
        np.array([8 * WORDS_LOOKED_AT], dtype=np.uint64),
        np.array([0x2000], dtype=np.uint64),
        np.array([layout], dtype=np.uint64),
    )
    every = tuple(Feature(FeatureKind.WORD_CLASS, index) for index in range(len(words)))
    assert kinds == extract(every, objects)[0].tolist()
    assert {WordClass.ZERO, WordClass.SMALL, WordClass.SELF, WordClass.KERNEL_DATA, WordClass.MISSING} <= set(
        kinds
    )
    assert column("result", "outcome")[0] == tree.predict(extract(features, objects))[0]
