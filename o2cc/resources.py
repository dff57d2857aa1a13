"""Where the files that travel with the package are: grammar, stdlib, examples, descriptions, module source.

A wheel carries them in ``o2cc/data``; a checkout (also an editable install) has them at its root.
"""

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
