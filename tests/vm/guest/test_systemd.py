# SPDX-License-Identifier: Apache-2.0
"""The systemd units: a policy comes with its start and goes with its stop.

Once by their commands, run as the unit gives them: what systemd would do with a command line (the instance's name, quotes,
the environment file, the mark for failures that do not count) is done here.  And once by a systemd, with the unit's sandbox.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.guest.enforcer_support import load_module
from tests.vm.guest.systemd_support import SYSTEMD, Systemd
from tests.vm.guest.victim_support import NAME, Victim, o2c, settled, unload_all
from tests.vm.guest.waiting import wait_until
from tests.vm.policies import guest_object

pytestmark = pytest.mark.full  # half a minute, and twice that with the installed command
UNIT = Path(__file__).parents[3] / "bpf_runtime/systemd/o2c@.service"
POLICIES = Path("/etc/o2c")
ATTACK = 3  # a store to foreign memory in store_word()
PATIENCE = 120.0  # seconds
# Asks the test to run the command in its process: starting Python takes ten seconds under emulation.
STAND_IN = """\
#!/bin/sh
cd {directory} || exit 99
printf '%s\\n' "$@" > asking && mv asking asked
until [ -e answer ]; do sleep 0.1; done
read -r status < answer && rm answer && exit "$status"
"""


def commands(setting: str) -> list[tuple[list[str], bool]]:
    """The command lines of a setting of the unit, and whether their failure counts."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines()]
    values = [value.replace("%i", NAME) for name, _, value in lines if name == setting]
    return [(shlex.split(value.removeprefix("-")), not value.startswith("-")) for value in values]


class Service:
    """Starts and stops the unit's instance for the victim."""

    def __init__(self, directory: Path, installed: bool) -> None:
        self._directory = directory
        self._path = Path(sys.executable).parent if installed else directory
        self._sandbox = ["unshare", "--net", "setpriv", "--no-new-privs"] if installed else []
        if not installed:
            stand_in = directory / "o2c"
            stand_in.write_text(STAND_IN.format(directory=shlex.quote(str(directory))))
            stand_in.chmod(0o755)

    def start(self) -> int:
        """The status of the first command that fails, or 0."""
        return self._run("ExecStartPre") or self._run("ExecStart")

    def stop(self) -> int:
        """Likewise."""
        return self._run("ExecStop")

    def _run(self, setting: str) -> int:
        listed = commands(setting)
        assert listed, f"the unit has no {setting}"
        for command, counts in listed:
            process = subprocess.Popen([*self._sandbox, *command], env=self._environment())
            while process.poll() is None:
                self._answer()
                time.sleep(0.05)
            if process.returncode and counts:
                return process.returncode
        return 0

    def _environment(self) -> dict[str, str]:
        file = POLICIES / f"{NAME}.conf"
        lines = file.read_text().splitlines() if file.exists() else []
        settings = dict(line.split("=", 1) for line in lines)
        return {**os.environ, **settings, "PATH": f"{self._path}:{os.environ['PATH']}"}

    def _answer(self) -> None:
        asked = self._directory / "asked"
        if asked.exists():
            arguments = asked.read_text().splitlines()
            asked.unlink()
            done = o2c(*arguments)
            sys.stderr.write(done.stderr)
            (self._directory / "answering").write_text(f"{done.returncode}\n")
            (self._directory / "answering").rename(self._directory / "answer")


@pytest.fixture
def policies() -> Iterator[Path]:
    """The directory of the units' policies, empty."""
    unload_all()
    assert not POLICIES.exists()
    POLICIES.mkdir()
    yield POLICIES
    shutil.rmtree(POLICIES)
    unload_all()


@pytest.fixture(params=[False, True], ids=["in-this-process", "installed"])
def service(request: pytest.FixtureRequest, policies: Path, tmp_path: Path) -> Service:
    return Service(tmp_path, request.param)


@pytest.fixture
def systemd(policies: Path, tmp_path: Path) -> Iterator[Systemd]:
    if not SYSTEMD.exists():
        pytest.skip("no systemd on this machine")
    load_module("o2c")  # the unit asks modprobe for it, which knows only what is installed
    instance = Systemd(tmp_path, Path(sys.executable).parent)
    yield instance
    instance.close()


def test_the_unit_loads_and_unloads_the_policy_of_its_name(victim: Victim, service: Service) -> None:
    before = settled()
    assert service.start() == 1  # there is no policy yet
    shutil.copy(guest_object("report"), POLICIES / f"{NAME}.bpf.o")
    (POLICIES / f"{NAME}.conf").write_text("O2C_OPTIONS=--only store_word\n")
    assert service.start() == 0
    (status,) = json.loads(o2c("status", "--json").stdout)["compartments"]
    assert status["name"] == NAME
    victim.run(ATTACK)
    (report,) = o2c("monitor", NAME, "--for", "0", "--json").stdout.splitlines()
    assert "store_word" in report
    assert service.stop() == 0
    assert settled() == before
    assert service.stop() != 0  # nothing is there to be stopped


def loaded_for() -> float:
    """Seconds since the only policy, which o2c.ko enforces, was loaded."""
    (status,) = json.loads(o2c("status", "--json").stdout)["compartments"]
    assert (status["name"], status["enforced"]) == (NAME, True)
    return float(status["loaded_for"])


@pytest.mark.timeout(1500)
def test_systemd_keeps_a_policy_in_force_until_it_stops_the_unit(victim: Victim, systemd: Systemd) -> None:
    unit, events = f"o2c@{NAME}.service", f"o2c-events@{NAME}.service"
    before = settled()
    # no policy: the unit's condition fails, which is no failure of the unit
    assert systemd.control("start", unit).returncode == 0
    assert systemd.control("is-active", unit).stdout == "inactive\n"
    # a load that fails
    (POLICIES / f"{NAME}.bpf.o").write_bytes(b"no object")
    assert systemd.control("start", unit).returncode == 1
    assert systemd.control("is-failed", unit).stdout == "failed\n"
    assert "error[O2C0" in systemd.journal(unit)
    assert settled() == before

    shutil.copy(guest_object("deny"), POLICIES / f"{NAME}.bpf.o")
    (POLICIES / f"{NAME}.conf").write_text("O2C_OPTIONS=--only store_word --accept-gaps\n")
    systemd.enable(unit, events)
    assert systemd.control("daemon-reload").returncode == 0
    assert systemd.control("start", unit).returncode == 0, systemd.journal(unit)
    first = loaded_for()
    victim.run(ATTACK)
    assert victim.state()["foreign"] == 0
    assert wait_until(lambda: "store_word" in systemd.journal(events), PATIENCE)

    restarting = time.monotonic()
    assert systemd.control("restart", unit).returncode == 0, systemd.journal(unit)
    assert loaded_for() < first + time.monotonic() - restarting
    assert systemd.control("is-active", unit, events).stdout == "active\nactive\n"
    victim.run(ATTACK)
    assert victim.state()["foreign"] == 0

    assert systemd.control("stop", unit).returncode == 0, systemd.journal(unit)
    assert systemd.control("is-active", unit, events).stdout == "inactive\ninactive\n"
    assert settled() == before
    victim.run(ATTACK)
    assert victim.state()["foreign"] > 0

    # as at a shutdown
    assert systemd.control("start", unit).returncode == 0, systemd.journal(unit)
    loaded_for()
    assert systemd.shut_down() == 0
    assert settled() == replace(before, programs=0)  # systemd's own have gone with it
