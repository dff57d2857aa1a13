# SPDX-License-Identifier: Apache-2.0
"""The diagnostics of this stage (O2C04xx), each made in one place.

==========  ==========================================================
O2C0401     not an ELF file that this stage reads
O2C0402     a truncated or inconsistent ELF file
O2C0403     compressed data that cannot be unpacked
O2C0404     a kernel image in which the kernel cannot be found
O2C0405     broken BTF
O2C0406     broken kallsyms tables
O2C0410     not a description
O2C0411     a description of another format version
O2C0412     a truncated or corrupt description
O2C0420     no such function, or no function matches a pattern
O2C0421     no kernel of that name, or no module of that name
O2C0422     the module belongs to another kernel
==========  ==========================================================
"""

from o2cc.diagnostics import DiagnosticError, error

NOT_ELF = "O2C0401"
BROKEN_ELF = "O2C0402"
BROKEN_COMPRESSION = "O2C0403"
NO_KERNEL_IMAGE = "O2C0404"
BROKEN_BTF = "O2C0405"
BROKEN_KALLSYMS = "O2C0406"
NOT_DESCRIPTION = "O2C0410"
OTHER_VERSION = "O2C0411"
BROKEN_DESCRIPTION = "O2C0412"
NO_FUNCTION = "O2C0420"
NO_KERNEL = "O2C0421"
OTHER_KERNEL = "O2C0422"


def failure(code: str, message: str, path: str | None = None, help: str | None = None) -> DiagnosticError:
    """The exception that carries one error about the file ``path``."""
    return DiagnosticError(error(code, message, path=path, help=help))
