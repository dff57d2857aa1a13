# SPDX-License-Identifier: Apache-2.0
"""What an engineer on call types: `o2c doctor`, `load`, `status`, `monitor`, `phase`, `unload`; exit codes and JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from o2cc.runtime import loader
from o2cc.runtime.loader import LoadOptions
from tests.vm.guest.enforcer_support import load_module, unload_module
from tests.vm.guest.test_sctp_confined import HOT, matches
from tests.vm.guest.victim_support import NAME, Victim, o2c, unload_all
from tests.vm.policies import guest_object, guest_sctp_object

ONE = ("--only", "store_word", "--accept-gaps")


@pytest.fixture
def victim() -> Iterator[Victim]:
    unload_all()
    load_module("o2c")
    device = Victim()
    yield device
    device.close()
    unload_all()


def answer(*arguments: str) -> dict[str, Any]:
    """The JSON of a command that must succeed."""
    done = o2c(*arguments, "--json")
    assert done.returncode == 0, (arguments, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_doctor_says_what_can_be_enforced(victim: Victim) -> None:
    with_module = o2c("doctor")
    assert with_module.returncode == 0
    assert "policies that report: yes" in with_module.stdout
    assert "policies that deny:   yes" in with_module.stdout
    assert answer("doctor")["can_prevent"] is True
    assert unload_module("o2c") == 0
    without = o2c("doctor")
    assert without.returncode == 0
    assert "policies that report: yes" in without.stdout
    assert "policies that deny:   no" in without.stdout
    assert "make -C bpf_runtime/module" in without.stdout


def test_a_life_in_json(victim: Victim) -> None:
    path = str(guest_object("transition-deny"))
    loaded = answer("load", path, *ONE)
    assert (loaded["name"], loaded["enforced"], loaded["degraded"]) == (NAME, True, None)
    assert answer("phase")["phase"] == "transition"
    assert answer("phase", "final")["phase"] == "final"
    victim.run(3)
    (line,) = o2c("monitor", "--for", "0", "--json").stdout.splitlines()
    event = json.loads(line)
    assert (event["event"], event["kind"], event["function"]) == ("violation", "store", "store_word")
    (status,) = answer("status")["compartments"]
    assert status["counters"][0]["denied"] == 1
    assert status["phase"] == "final"
    assert answer("unload") == {"unloaded": {NAME: loaded["attached"]}}
    assert answer("status") == {"compartments": []}


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("unload",), 1, "O2C0802"),
        (("phase",), 1, "O2C0802"),
        (("monitor", "--for", "0"), 1, "O2C0802"),
        (("status", "nobody"), 1, "O2C0802"),
        (("phase", NAME, "sideways"), 2, "no phase"),
        (("unload", NAME, "--all"), 2, "exclude each other"),
        (("load",), 2, "Missing argument"),
    ],
)
def test_refusals_have_a_status_and_a_code(
    victim: Victim, arguments: tuple[str, ...], status: int, code: str
) -> None:
    done = o2c(*arguments)
    assert done.returncode == status
    assert code in done.stderr


def test_loading_refuses_what_it_must_and_names_the_way_out(victim: Victim) -> None:
    path = str(guest_object("deny"))
    assert o2c("load", path, *ONE).returncode == 0
    again = o2c("load", path, *ONE)
    assert (again.returncode, "O2C0804" in again.stderr, "o2c unload victim" in again.stderr) == (
        1,
        True,
        True,
    )
    assert o2c("unload").returncode == 0
    assert unload_module("o2c") == 0
    refused = o2c("load", path, *ONE)
    assert refused.returncode == 1
    for said in ("O2C0830", "make -C bpf_runtime/module", "dkms install", "--degrade report"):
        assert said in refused.stderr
    assert json.loads(o2c("status", "--json").stdout) == {"compartments": []}


@pytest.mark.timeout(200)
def test_compartments_live_side_by_side(victim: Victim) -> None:
    """One denies, the other only reports, on modules of their own; each comes and goes alone."""
    subprocess.run(["modprobe", "sctp"], check=True)
    assert o2c("load", str(guest_object("deny")), *ONE).returncode == 0
    part = LoadOptions(
        wanted=lambda site: site.function == "sctp_inq_push" and matches(site, HOT), degrade="report"
    )
    loader.load(guest_sctp_object().read_bytes(), options=part)
    shown = answer("status")["compartments"]
    assert [item["name"] for item in shown] == ["sctp", NAME]
    unnamed = o2c("phase")
    assert (unnamed.returncode, "O2C0807" in unnamed.stderr) == (1, True)
    assert o2c("unload", "sctp").returncode == 0
    victim.run(3)
    assert victim.state()["foreign"] == 0
    assert o2c("unload").returncode == 0
