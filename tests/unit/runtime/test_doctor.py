# SPDX-License-Identifier: Apache-2.0
"""What the doctor concludes from the facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from o2cc.runtime.doctor import Facts, Grade, judge, parse_config, parse_lockdown, parse_number

FIT = Facts(
    release="6.1.0-57-amd64",
    root=True,
    libbpf=True,
    config=dict.fromkeys(("CONFIG_BPF_SYSCALL", "CONFIG_KPROBES", "CONFIG_BPF_EVENTS", "CONFIG_PERF_EVENTS", "CONFIG_BPF_JIT"), "y"),
    btf=True,
    bpffs=True,
    optimization=True,
    lockdown=None,
    module_signing_enforced=False,
    module_loaded=True,
    module_built=None,
    headers=True,
    addresses_shown=True,
    missed_counted=True,
    build_id="beef",
)  # fmt: skip


def test_a_fit_machine_is_all_good() -> None:
    verdict = judge(FIT)
    assert verdict.can_report
    assert verdict.can_prevent
    assert {finding.grade for finding in verdict.findings} == {Grade.GOOD}


@pytest.mark.parametrize(
    ("changes", "subject", "remedy"),
    [
        ({"root": False}, "root", "run as root"),
        ({"libbpf": False}, "libbpf", "apt-get install libbpf1"),
        ({"config": {"CONFIG_BPF_SYSCALL": "y"}}, "kernel configuration", "boot a kernel"),
        ({"btf": False}, "BTF", "CONFIG_DEBUG_INFO_BTF"),
        ({"bpffs": False}, "bpffs", "mount -t bpf"),
        ({"addresses_shown": False}, "kernel addresses", "kptr_restrict"),
        ({"lockdown": "confidentiality"}, "lockdown", "integrity"),
        ({"target": "sctp", "target_loaded": False, "description": "beef"}, "target", "modprobe sctp"),
        ({"target": "sctp", "target_loaded": True, "description": None}, "description", "o2c scan sctp"),
        ({"target": "sctp", "target_loaded": True, "description": "dead"}, "description", "o2c scan sctp"),
    ],
)
def test_what_prevents_reporting(changes: dict[str, Any], subject: str, remedy: str) -> None:
    verdict = judge(replace(FIT, **changes))
    assert not verdict.can_report
    assert not verdict.can_prevent
    (bad,) = [finding for finding in verdict.findings if finding.grade is Grade.BAD]
    assert bad.subject == subject
    assert remedy in bad.remedy


def test_an_older_module_prevents_and_is_told_of() -> None:
    """Catches an upgrade after which the old module goes on, with holes that nobody hears of."""
    verdict = judge(replace(FIT, module_older=True))
    assert verdict.can_prevent
    (note,) = [finding for finding in verdict.findings if finding.grade is Grade.NOTE]
    assert (note.subject, "unseen" in note.text, "rmmod o2c" in note.remedy) == ("o2c.ko", True, True)
    assert judge(replace(FIT, module_older=None)).findings == judge(FIT).findings


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "make -C bpf_runtime/module"),
        ({"headers": False}, "apt-get install linux-headers-6.1.0-57-amd64"),
        ({"module_built": "/lib/modules/x/updates/dkms/o2c.ko"}, "modprobe o2c"),
    ],
)
def test_without_the_module_one_reports_and_is_told_how_to_get_it(
    changes: dict[str, Any], remedy: str
) -> None:
    verdict = judge(replace(FIT, module_loaded=False, **changes))
    assert verdict.can_report
    assert not verdict.can_prevent
    (note,) = [finding for finding in verdict.findings if finding.grade is Grade.NOTE]
    assert remedy in note.remedy


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optimization": False}, "switched off"),
        ({"optimization": None}, "not in this kernel"),
        ({"optimization": False, "optimization_held": True}, "only reports"),
        ({"missed_counted": False}, "not counted"),
        ({"module_signing_enforced": True}, "must be signed"),
        ({"config": None}, "cannot be read"),
        (
            {"target": "x", "target_loaded": True, "description": "beef", "ambiguous": tuple("abcdefg")},
            "a, b, c, d, e, ...",
        ),
    ],
)
def test_notes_do_not_prevent_anything(changes: dict[str, Any], text: str) -> None:
    verdict = judge(replace(FIT, **changes))
    assert verdict.can_prevent
    assert any(text in finding.text for finding in verdict.findings if finding.grade is Grade.NOTE)


def test_texts_of_the_kernel_are_parsed() -> None:
    assert parse_config('# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C="text"\n') == {
        "CONFIG_B": "y",
        "CONFIG_C": "text",
    }
    assert parse_lockdown("none [integrity] confidentiality\n") == "integrity"
    assert parse_lockdown("[none] integrity confidentiality\n") is None
    assert parse_lockdown("") is None


@pytest.mark.parametrize(("text", "number"), [("100\n", 100), ("0\n", 0), ("", 0), ("Y\n", 0)])
def test_the_number_in_a_setting(text: str, number: int) -> None:
    assert parse_number(text) == number


def test_sampling_by_kfence_is_told_with_its_remedy() -> None:
    verdict = judge(replace(FIT, kfence_interval=100))
    assert verdict.can_prevent
    (told,) = [finding for finding in verdict.findings if finding.grade is not Grade.GOOD]
    assert told.subject == "KFENCE"
    assert "100 ms" in told.text
    assert told.remedy.startswith("echo 0 > /sys/module/kfence/")


@pytest.mark.parametrize(("debugged", "text"), [(True, "is refused"), (None, "cannot be told")])
def test_what_is_in_the_way_of_a_private_heap(debugged: bool | None, text: str) -> None:
    verdict = judge(replace(FIT, slabs_debugged=debugged))
    (note,) = [finding for finding in verdict.findings if finding.grade is not Grade.GOOD]
    assert note.subject == "private heap"
    assert text in note.text
    assert verdict.can_report
