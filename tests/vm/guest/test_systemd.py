# SPDX-License-Identifier: Apache-2.0
"""The commands of the systemd unit, run as the unit gives them: a policy comes with its start and goes with its stop.

No systemd runs in the machine: what it would do with a command line (the instance's name, quotes, the environment file,
the mark for failures that do not count) is done here.  Its sandbox is not tried, but for the private network and the
denied privileges in the run with the installed command.
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
from pathlib import Path

import pytest

from tests.vm.guest.victim_support import NAME, Victim, o2c, settled, unload_all
from tests.vm.policies import guest_object

pytestmark = pytest.mark.full  # half a minute, and twice that with the installed command
UNIT = Path(__file__).parents[3] / "bpf_runtime/systemd/o2c@.service"
POLICIES = Path("/etc/o2c")
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


@pytest.fixture(params=[False, True], ids=["in-this-process", "installed"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    unload_all()
    assert not POLICIES.exists()
    POLICIES.mkdir()
    yield Service(tmp_path, request.param)
    shutil.rmtree(POLICIES)
    unload_all()


def test_the_unit_loads_and_unloads_the_policy_of_its_name(victim: Victim, service: Service) -> None:
    before = settled()
    assert service.start() == 1  # there is no policy yet
    shutil.copy(guest_object("report"), POLICIES / f"{NAME}.bpf.o")
    (POLICIES / f"{NAME}.conf").write_text("O2C_OPTIONS=--only store_word\n")
    assert service.start() == 0
    (status,) = json.loads(o2c("status", "--json").stdout)["compartments"]
    assert status["name"] == NAME
    victim.run(3)
    (report,) = o2c("monitor", NAME, "--for", "0", "--json").stdout.splitlines()
    assert "store_word" in report
    assert service.stop() == 0
    assert settled() == before
    assert service.stop() != 0  # nothing is there to be stopped
