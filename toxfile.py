"""Let tox find interpreters that a version manager keeps off PATH (or behind shims that do not run)."""

import os
from pathlib import Path

VERSIONS = (
    Path(os.environ.get("PYENV_ROOT", "~/.pyenv")) / "versions",
    Path(os.environ.get("ASDF_DATA_DIR", "~/.asdf")) / "installs/python",
    Path(os.environ.get("MISE_DATA_DIR", "~/.local/share/mise")) / "installs/python",
    Path(os.environ.get("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python")),
)

# At the end: what the user put on PATH still comes first.
os.environ["PATH"] = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), *(str(path) for root in VERSIONS for path in root.expanduser().glob("*/bin"))]
)
