# SPDX-License-Identifier: Apache-2.0
"""This machine's systemd as process 1 of a PID namespace, with our units and the few that these need.

The test machine's own process 1 is a shell (tests/vm/run_command.sh), so systemd runs as in a container: it manages the
whole control group tree and knows no hardware.  systemctl must run in its namespaces: systemd asks the kernel who speaks to
it, and gets no process number for somebody outside (src/basic/socket-util.c getpeercred(), systemd 252).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from tests.vm.guest.waiting import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
UNITS = Path(__file__).parents[3] / "bpf_runtime/systemd"
_TARGETS = "basic exit final local-fs multi-user shutdown slices sockets sysinit umount"
_OTHERS = "systemd-exit.service systemd-journald.service systemd-journald.socket"
_PATIENCE = 120.0  # seconds
_MACHINE = Path("/etc/machine-id")
_SOCKET = Path("/run/systemd/private")


class Systemd:
    """A running systemd.  ``path``: where services find their programs first."""

    def __init__(self, directory: Path, path: Path) -> None:
        self._units = directory / "units"
        self._units.mkdir()
        for name in (*(f"{target}.target" for target in _TARGETS.split()), *_OTHERS.split()):
            shutil.copy(SYSTEMD.parent / "system" / name, self._units)
        for unit in UNITS.glob("*.service"):
            shutil.copy(unit, self._units)
        self.enable("sysinit.target", "systemd-journald.service")
        self._output = (directory / "systemd").open("w+")
        if not _MACHINE.exists():  # the journal needs one
            _MACHINE.write_text(f"{os.getpid():032x}\n")
        settings = f"[Manager]\nDefaultEnvironment=PATH={path}:{os.environ['PATH']}\n"
        for name in ("O2C_CACHE", "HOME"):
            if name in os.environ:
                settings += f"DefaultEnvironment={name}={os.environ[name]}\n"
        Path("/etc/systemd").mkdir(exist_ok=True)
        Path("/etc/systemd/system.conf").write_text(settings)
        self._process = subprocess.Popen(
            [
                *("unshare", "--fork", "--pid", "--mount-proc", "--kill-child"),
                *(str(SYSTEMD), "--system", "--unit=multi-user.target", "--log-target=console"),
            ],
            env={"container": "test", "SYSTEMD_UNIT_PATH": str(self._units), "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        assert wait_until(_SOCKET.exists, _PATIENCE), self.output()
        [child] = subprocess.run(
            ["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        self._inside = ["nsenter", "-t", child, "-p", "-m"]
        assert wait_until(self._has_started, _PATIENCE), self.output()

    def _has_started(self) -> bool:
        return self.control("is-system-running").stdout.strip() in ("running", "degraded")

    def enable(self, target: str, unit: str) -> None:
        """Have a unit want another, as `systemctl enable` does."""
        wants = self._units / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"../{re.sub('@.*[.]', '@.', unit)}")

    def control(self, *arguments: str, limit: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run systemctl."""
        return subprocess.run(
            [*self._inside, "systemctl", "--no-pager", "--no-ask-password", *arguments],
            capture_output=True,
            text=True,
            timeout=limit,
        )

    def journal(self, unit: str) -> str:
        """What a unit wrote."""
        command = ["journalctl", "--no-pager", "-o", "cat", "-u", unit]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def output(self) -> str:
        """What systemd itself said so far."""
        self._output.flush()
        return Path(self._output.name).read_text(errors="replace")

    def shut_down(self, limit: float = 300.0) -> int:
        """Stop all units and end, as at a shutdown; the exit status."""
        self.control("exit", "0")
        return self._process.wait(limit)

    def close(self) -> None:
        """Have it end, if it has not been shut down."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._output.close()
