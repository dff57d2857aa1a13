"""Where files are kept: those that travel with the package (grammar, stdlib, examples, descriptions, module source),
and the user's own.

A wheel carries them in ``o2cc/data``; a checkout (also an editable install) has them at its root.
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_directory(name: str) -> Path:
    """The directory ``name`` (for example ``"stdlib"``) that belongs to this installation.

    Raises FileNotFoundError if the installation lacks it.
    """
    for root in (_PACKAGE / "data", _PACKAGE.parent):
        candidate = root / name
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"this installation of o2c has no `{name}` directory")


def cache_directory() -> Path:
    """Where this user keeps what was fetched or made once: kernels, descriptions, parser tables."""
    own = os.environ.get("O2C_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "o2c"
