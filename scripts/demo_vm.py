# SPDX-License-Identifier: Apache-2.0
"""Boots a stock Debian kernel in a VM and shows attacks succeeding without a policy and failing with it.

    .venv/bin/python -m scripts.demo_vm [--kernel 6.1|6.12]

What is attacked is the deliberately vulnerable module of the tests (tests/kernel/victim); what the attacks aim at
belongs to another module.  Nothing happens to the machine that this runs on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import loader
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.status import gather, lines
from scripts.fetch_kernels import SERIES, FetchError, ensure

SHOWN = {
    1: ("overflow of a heap object", "foreign"),
    3: ("write to an address of the attacker's choice", "foreign"),
    5: ("copy onto a foreign object", "foreign"),
    9: ("call through an overwritten function pointer", "secret"),
    15: ("free of a foreign object", "freed"),
}
_SECONDS = 300.0


def _heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _attacks(prevented: bool) -> bool:
    """Run every attack and say what became of it; whether all went as they should."""
    from tests.vm.guest.victim_support import PROPER, Victim, events

    victim = Victim()
    as_expected = True
    for number, (what, effect) in SHOWN.items():
        victim.run(number)
        harmed = victim.state()[effect] > 0
        as_expected &= harmed != prevented
        print(f"  {what:<52} {'SUCCEEDED' if harmed else 'prevented'}", flush=True)
        if prevented:
            found, _ = events()
            print(f"      {found[0].sentence()}" if found else "      (no report)", flush=True)
            as_expected &= bool(found)
    worked = victim.run(PROPER) == 0
    print(f"  {'proper use of the same functions':<52} {'works' if worked else 'BROKEN'}", flush=True)
    victim.close()
    return as_expected and worked


def guest() -> int:
    """What runs in the VM; 0 when everything went as it should."""
    from tests.vm.guest.enforcer_support import load_module
    from tests.vm.policies import POLICY, guest_object, variant_text

    _heading("Without a policy")
    good = _attacks(prevented=False)
    _heading(f"The policy ({POLICY.name})")
    print("".join(f"  {line}\n" for line in variant_text("deny").splitlines()), flush=True)
    load_module("o2c")
    loaded = loader.load(guest_object("deny").read_bytes(), options=LoadOptions(accept_gaps=True))
    print(f"  loaded: {loaded.attached} sites attached, no reboot, kernel and module unchanged", flush=True)
    _heading("With the policy")
    good &= _attacks(prevented=True)
    _heading("o2c status")
    print("\n".join(f"  {line}" for line in lines(gather("victim"))), flush=True)
    loader.unload("victim")
    _heading("After `o2c unload`")
    good &= _attacks(prevented=False)
    print()
    return 0 if good else 1


def host(series: str) -> int:
    """Build what the VM needs, boot it, show its output."""
    from tests.vm import kbuild, policies
    from tests.vm.machine import MachineError, run

    try:
        kernel = ensure(series)
        for source in kbuild.module_sources():
            kbuild.build_module(kernel, source)
        policies.prepare(kernel)
        _heading(f"Booting Debian's {kernel.release} under QEMU (emulated: slow; under two minutes)")
        with tempfile.TemporaryDirectory() as results:
            outcome = run(
                kernel,
                [sys.executable, "-m", "scripts.demo_vm", "--guest"],
                results=Path(results),
                timeout=_SECONDS,
                on_output=lambda text: print(text, end="", flush=True),
            )
    except (FetchError, kbuild.BuildError, MachineError, DiagnosticError) as problem:
        print(f"demo_vm: {problem}", file=sys.stderr)
        return 1
    if outcome.ending != "exit" or outcome.splats:
        print("\n".join(outcome.kernel_log[-20:]), file=sys.stderr)
        print(f"demo_vm: the VM ended by {outcome.ending}", file=sys.stderr)
        return 1
    print("As it should be." if outcome.status == 0 else "Not as it should be.")
    return int(outcome.status or 0)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=list(SERIES), default=next(iter(SERIES)))
    parser.add_argument("--guest", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return guest() if arguments.guest else host(arguments.kernel)


if __name__ == "__main__":
    sys.exit(main())
