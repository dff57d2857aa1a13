# SPDX-License-Identifier: Apache-2.0
"""Boot a kernel in QEMU over this machine's own file tree, run one command as root, bring back the results.

From the shell, output is printed live and the exit status is the command's::

    .venv/bin/python -m tests.vm.machine --kernel 6.1 --timeout 300 -- COMMAND ARGUMENT ...

The guest sees the host's whole tree, so the project's virtual environment and the working copy are
where they are outside. Everything is writable there, in memory: changes are gone afterwards, except
those in ``$O2C_RESULTS`` (the host's ``--results`` directory). In the guest are mounted: /proc, /sys,
debugfs, tracefs, bpffs (/sys/fs/bpf), cgroup2; loopback is up; ``modprobe`` knows the booted
kernel's modules; ``TMPDIR`` is in memory. ``$O2C_MODULES`` is the directory with the
project's own modules (see tests/vm/kbuild.py). The kernel command line carries ``o2c.vm=1``.

QEMU is emulation only unless ``$O2C_QEMU_ACCEL`` says otherwise (``kvm``). It is killed, always, at the timeout,
when this process dies, or when the guest ends; a panic ends the guest at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scripts.fetch_kernels import FetchError, Kernel, cache_dir, ensure
from tests.vm.splats import parse_kmsg, splats

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = "/run/o2c/results"
VM_MARK = "o2c.vm=1"
TOOLS = ("qemu-system-x86_64", "busybox", "cpio")
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

SLOW_PLUGINS = ("benchmark", "hypothesispytest", "syrupy", "xdist")
"""pytest plugins that the guest goes without: importing them takes 8 s under emulation."""

# random.trust_cpu: no wait for entropy. The lockup limits are wide: emulation is slow and shares its CPUs.
# loglevel=5: warnings and worse go to the serial console, so that a panic's last words are kept.
COMMAND_LINE = (
    "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on no_timer_check tsc=unstable clocksource=acpi_pm "
    "watchdog_thresh=60 softlockup_panic=1 sysrq_always_enabled rcupdate.rcu_cpu_stall_timeout=60 "
    "net.ifnames=0 rdinit=/init " + VM_MARK
)

LAST_WORDS_SECONDS = 15
"""How long a guest at its timeout may print the stacks of its tasks."""

Ending = Literal["exit", "panic", "timeout", "died"]


class MachineError(Exception):
    """The machine cannot be started here; the message says what is missing."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    ending: Ending
    """``exit``: the command ended; ``panic``; ``timeout``: killed; ``died``: QEMU ended without either."""
    status: int | None
    """Exit status of the command, None unless ``ending`` is ``exit``."""
    output: str
    """Standard output and error of the command, together."""
    kernel_log: tuple[str, ...]
    """Kernel log lines, oldest first; after a panic the serial console's lines follow."""
    results: Path
    """Directory that was ``$O2C_RESULTS`` in the guest."""
    boot_seconds: float | None
    """Host seconds from the start of QEMU to the start of the command."""
    seconds: float
    """Host seconds in all."""

    @property
    def splats(self) -> list[str]:
        """Lines of the kernel log that report a broken kernel."""
        return splats(self.kernel_log)

    @property
    def ok(self) -> bool:
        """The command ended with status 0."""
        return self.ending == "exit" and self.status == 0


def missing_tools() -> list[str]:
    """Programs that a VM needs and this machine lacks (package names: scripts/install-test-tools)."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    # Process 1 has no libraries; a program that is linked to some names their loader at its beginning.
    if (busybox := shutil.which("busybox")) and b"/ld-linux" in Path(busybox).read_bytes()[:4096]:
        missing.append("busybox that is statically linked")
    return missing


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    results: Path,
    timeout: float = 300.0,
    memory: str = "2G",
    cpus: int = 2,
    environment: Mapping[str, str] | None = None,
    kernel_arguments: str = "",
    directory: Path = PROJECT,
    count_instructions: bool = False,
    on_output: Callable[[str], None] | None = None,
    poll: Callable[[], None] | None = None,
) -> Outcome:
    """Boot ``kernel``, run ``command`` in it as root, and wait for its end, at most ``timeout`` seconds.

    ``results`` is created if need be and shared, writable, as ``$O2C_RESULTS``. With ``count_instructions`` the guest's
    clocks count executed instructions, one a nanosecond (QEMU's -icount), and jump while it is idle. ``on_output`` gets the
    command's output as it comes; ``poll`` is called some times a second while the guest runs.
    Raises MachineError when QEMU cannot be run here.
    """
    if missing := missing_tools():
        raise MachineError(f"missing on this machine: {', '.join(missing)} (see scripts/install-test-tools)")
    results = results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    for name in ("status", "booted", "kmsg", "output", "console", "monitor"):
        (results / name).unlink(missing_ok=True)
    (results / "output").touch()
    (results / "modules-dir").write_text(f"{kernel.modules_dir}\n")
    (results / "command.sh").write_text(_command_script(kernel, command, directory, environment or {}))
    arguments = _qemu_arguments(kernel, results, memory, cpus, kernel_arguments)
    if count_instructions:
        arguments += ["-icount", "shift=0,sleep=off"]

    started = time.monotonic()
    booted: float | None = None
    deadline = started + timeout
    timed_out = False
    with (results / "output").open(encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=(results / "monitor").open("w"),
            stderr=(results / "qemu-errors").open("w"),
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            while True:
                ended = process.poll() is not None
                if booted is None and (results / "booted").exists():
                    booted = time.monotonic() - started
                if (text := output.read()) and on_output:
                    on_output(text)
                if poll:
                    poll()
                if count_instructions and booted is None:
                    _take_turns(process)
                if ended:
                    break
                if time.monotonic() > deadline:
                    timed_out = True
                    _ask_what_it_waits_for(process, results / "console")
                    break
                time.sleep(0.05)
        finally:
            _kill_group(process)
    seconds = time.monotonic() - started

    status = _read(results / "status").strip()
    console = _read(results / "console")
    log = parse_kmsg(_read(results / "kmsg"))
    ending: Ending = "died"
    if status:
        ending = "exit"
    elif "Kernel panic" in console:
        ending = "panic"
    elif timed_out:
        ending = "timeout"
    if ending != "exit":
        log += ["--- serial console ---", *console.replace("\r", "").splitlines()]
        log += _read(results / "qemu-errors").splitlines()
    if timed_out:
        where = re.findall(r"^(?:CPU#|[RE]IP=).*", _read(results / "monitor"), re.MULTILINE)
        log += ["--- processors at the timeout ---", *(line.strip() for line in where)]
    return Outcome(
        ending=ending,
        status=int(status) if status else None,
        output=_read(results / "output"),
        kernel_log=tuple(log),
        results=results,
        boot_seconds=booted,
        seconds=seconds,
    )


def module_closure(modules_dep: str, names: Sequence[str]) -> list[str]:
    """Paths of the modules ``names`` and of all that they need, in an order that insmod accepts.

    ``modules_dep`` is the text of modules.dep. A name that it lacks is built in, and left out.
    """
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {_module_name(path): path for path in needs}
    order: list[str] = []

    def visit(path: str) -> None:
        for needed in needs[path]:
            if needed not in order:
                visit(needed)
        if path not in order:
            order.append(path)

    for name in names:
        if name in by_name:
            visit(by_name[name])
    return order


def _module_name(path: str) -> str:
    return re.sub(r"\.ko(\.xz|\.zst|\.gz)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")


def _command_script(
    kernel: Kernel, command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> str:
    variables = {
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "O2C_CACHE": str(cache_dir()),
        "O2C_KERNEL": kernel.series,
        "O2C_MODULES": str(cache_dir() / "modules"),
        "O2C_RESULTS": RESULTS,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTEST_ADDOPTS": " ".join(f"-p no:{plugin}" for plugin in SLOW_PLUGINS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": "/run/o2c/tmp",
        **environment,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [f"cd {shlex.quote(str(directory))} || exit 126", f"exec {shlex.join(command)}"]
    return "\n".join(lines) + "\n"


def _qemu_arguments(kernel: Kernel, results: Path, memory: str, cpus: int, extra: str) -> list[str]:
    # One thread: with a thread for each CPU, QEMU 7.2 can keep a stale translation of text that another CPU patches at
    # that moment (an int3 that is long gone), which hangs 6.1 and kills 6.12 while probes come and go.
    accelerator = os.environ.get("O2C_QEMU_ACCEL", "tcg,thread=single")
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", accelerator, "-cpu", "max", "-smp", str(cpus), "-m", memory),
        *("-kernel", str(kernel.vmlinuz), "-initrd", str(_initramfs(kernel))),
        *("-append", f"{COMMAND_LINE} {extra}".strip()),
        *("-serial", f"file:{results / 'console'}"),
        *("-monitor", "stdio"),
        *_share("host", Path("/"), "readonly=on,multidevs=remap"),
        *_share("results", results, "multidevs=remap"),
    ]


def _share(tag: str, path: Path, options: str) -> tuple[str, ...]:
    escaped = str(path).replace(",", ",,")
    return (
        *("-fsdev", f"local,id={tag},path={escaped},security_model=none,{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    )


def _initramfs(kernel: Kernel) -> Path:
    """The initramfs of ``kernel`` in the cache; rebuilt when one of our two scripts is newer."""
    here = Path(__file__).parent
    image = kernel.vmlinuz.with_name("o2c-initramfs.cpio")
    sources = (Path(__file__), here / "init.sh", here / "run_command.sh", kernel.modules_dir / "modules.dep")
    if image.exists() and image.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return image
    busybox = shutil.which("busybox")
    assert busybox is not None  # missing_tools() was asked
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".initramfs-") as scratch:
        tree = Path(scratch) / "tree"
        for name in ("bin", "dev", "host", "memory", "modules", "proc", "root", "sys"):
            (tree / name).mkdir(parents=True)
        shutil.copy(busybox, tree / "bin/busybox")
        (tree / "bin/sh").symlink_to("busybox")
        shutil.copy(here / "init.sh", tree / "init")
        (tree / "init").chmod(0o755)
        shutil.copy(here / "run_command.sh", tree / "run-command")
        order = module_closure((kernel.modules_dir / "modules.dep").read_text(), BOOT_MODULES)
        for path in order:
            data = (kernel.modules_dir / path).read_bytes()
            (tree / "modules" / f"{_module_name(path)}.ko").write_bytes(
                lzma.decompress(data) if path.endswith(".xz") else data
            )
        (tree / "modules/order").write_text("".join(f"{_module_name(path)}.ko\n" for path in order))
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        archive = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            input=names.encode(),
            cwd=tree,
            capture_output=True,
            check=True,
        )
        partial = Path(scratch) / "image"
        partial.write_bytes(archive.stdout)
        partial.rename(image)
    return image


def _die_with_parent() -> None:
    """In the child: have the kernel kill QEMU when we are gone, however we went (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ask_what_it_waits_for(process: subprocess.Popen[bytes], console: Path) -> None:
    """Have a guest that did not end say where its processors and tasks stand, before it is killed.

    The registers go to QEMU's monitor. The keys are the kernel's (Documentation/admin-guide/sysrq.rst): 8 lets all
    messages through to the serial console, l is the stacks of processors, t of all tasks.
    """
    assert process.stdin is not None
    keys = "".join(f"sendkey alt-sysrq-{key}\n" for key in "8lt")
    with contextlib.suppress(BrokenPipeError):  # QEMU has ended by itself
        process.stdin.write(f"info registers -a\n{keys}".encode())
        process.stdin.flush()
    end = time.monotonic() + LAST_WORDS_SECONDS
    size = -1
    while time.monotonic() < end and size != (size := console.stat().st_size if console.exists() else 0):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)


def _take_turns(process: subprocess.Popen[bytes]) -> None:
    """Have a guest's processors, of which QEMU's -icount emulates one at a time, take turns.

    Until 8.1 QEMU lets the first one run up to the next timer, and the others in what it leaves over: nothing, unless it
    halts or pauses (icount_get_limit(), accel/tcg/tcg-accel-ops-icount.c, 7.2; icount_percpu_budget() came with 8.1). While 6.1
    starts a second processor the first only looks whether it is there (do_boot_cpu(), arch/x86/kernel/smpboot.c; 6.12 sleeps),
    and would for ever. A machine that is stopped for a moment goes on with the other processor. Later all waiting halts or
    pauses, so that this ends with the boot, and nothing that the command counts depends on the host's time.
    """
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # QEMU has ended by itself
        process.stdin.write(b"stop\ncont\n")
        process.stdin.flush()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.machine", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kernel", default="6.1", help="kernel series (default: 6.1)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for all of it (default: 300)")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument(
        "--results", type=Path, help="directory for output, kernel log, files (default: temporary)"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--append", default="", help="more kernel command line")
    parser.add_argument("--dmesg", action="store_true", help="print the whole kernel log afterwards")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def live(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="o2c-vm-") as scratch:
        try:
            outcome = run(
                ensure(options.kernel),
                options.command,
                results=options.results or Path(scratch),
                timeout=options.timeout,
                memory=options.memory,
                cpus=options.cpus,
                environment=dict(setting.split("=", 1) for setting in options.env),
                kernel_arguments=options.append,
                directory=Path.cwd(),
                on_output=live,
            )
        except (MachineError, FetchError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 125
    if options.dmesg or outcome.ending != "exit":
        shown = outcome.kernel_log if options.dmesg else outcome.kernel_log[-60:]
        print("\n".join(["--- kernel log ---", *shown]), file=sys.stderr)
    for line in outcome.splats:
        print(f"splat: {line}", file=sys.stderr)
    boot = f"{outcome.boot_seconds:.1f} s boot, " if outcome.boot_seconds is not None else ""
    how = f"status {outcome.status}" if outcome.ending == "exit" else outcome.ending
    print(f"[vm {options.kernel}: {how}, {boot}{outcome.seconds:.1f} s in all]", file=sys.stderr)
    return outcome.status if outcome.status is not None else 124


if __name__ == "__main__":
    sys.exit(main())
