# SPDX-License-Identifier: Apache-2.0
"""`o2c profile` on a kernel that carries SCTP traffic: what it records, what it calls it, and that it leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from o2cc.runtime import kernel_calls
from o2cc.trees.dataset import Profile, read_profiles
from o2cc.trees.features import WordClass, extract
from o2cc.trees.tree import Feature, FeatureKind
from tests.vm.guest import object_workloads
from tests.vm.guest.waiting import wait_until

# How many samples eight seconds give depends on how fast the emulation runs: too few on a busy machine.
pytestmark = pytest.mark.full

SECONDS = 8.0
PER_CLASS = 60


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, str, int, int]:
    """A profile, what the command printed, and the numbers of BPF programs before and after."""
    subprocess.run(["modprobe", "sctp"], check=True)
    output = tmp_path_factory.mktemp("profile") / "sctp.parquet"
    before = kernel_calls.count_programs()
    workload = [sys.executable, object_workloads.__file__, "sctp", str(SECONDS + 200)]
    with subprocess.Popen(workload) as running:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "o2cc.cli.o2c", "profile", "-o", str(output)),
                *("--workload", "sctp", "--seconds", str(SECONDS), "--per-class", str(PER_CLASS)),
                *("--module", "sctp"),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
        running.terminate()
    assert done.returncode == 0, done.stderr
    wait_until(lambda: kernel_calls.count_programs() <= before)
    return read_profiles([output]), done.stdout, before, kernel_calls.count_programs()


def test_sctp_objects_are_recorded_under_their_types(recorded: tuple[Profile, str, int, int]) -> None:
    profile = recorded[0]
    counts = Counter(profile.label)
    for name in ("sctp_chunk", "sctp_association", "sctp_transport", "sk_buff", "payload"):
        assert counts[name] > 0, counts.most_common(40)
    assert set(profile.evidence) <= {
        "payload",
        "cache",
        "debug",
        "flow",
        "result",
        "table",
        "site",
        "conflict",
    }
    assert {"live", "access", "free"} >= set(profile.moment)
    assert {"access", "free"} <= set(profile.moment)
    assert set(profile.kernel) == {os.uname().release}
    assert set(profile.workload) == {"sctp"}
    assert max(Counter(zip(profile.label, profile.moment, strict=True)).values()) <= PER_CLASS


def test_words_are_those_of_the_objects(recorded: tuple[Profile, str, int, int]) -> None:
    """An association begins with type and count, a flag, its socket, its namespace (struct sctp_ep_common, 6.1 and
    6.12); and most of the words of all objects belong to some class other than OTHER."""
    profile = recorded[0]
    associations = profile.take(profile.label == "sctp_association")
    sockets = extract((Feature(FeatureKind.WORD_CLASS, 2),), associations.objects)[:, 0]
    assert (sockets == int(WordClass.DIRECT_MAP)).mean() >= 0.9, Counter(map(int, sockets))
    assert (associations.objects.size >= 1024).all()
    classes = extract(tuple(Feature(FeatureKind.WORD_CLASS, word) for word in range(4)), profile.objects)
    known = ((classes != int(WordClass.OTHER)) & (classes != int(WordClass.MISSING))).mean()
    assert known > 0.5


def test_what_was_dropped_is_said(recorded: tuple[Profile, str, int, int]) -> None:
    assert "dropped: " in recorded[1]
    assert "records (buffer full)" in recorded[1]


def test_nothing_stays_in_the_kernel(recorded: tuple[Profile, str, int, int]) -> None:
    assert recorded[3] <= recorded[2]
    assert "kmem_cache_free_bulk" not in Path("/sys/kernel/debug/kprobes/list").read_text()
