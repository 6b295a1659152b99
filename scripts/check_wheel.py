"""Build the wheel into dist/ and check it in an environment that holds it and its requirements only."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"

NOT_LOADED = ("sqlalchemy", "kafka", "confluent_kafka", "flask", "django", "celery", "pybreaker", "dishka", "rich")
EXTRA_OF = {
    "cqrs_sync.adapters.circuit_breaker": "circuit-breaker",
    "cqrs_sync.adapters.confluent": "confluent",
    "cqrs_sync.adapters.kafka": "kafka",
    "cqrs_sync.container.dependency_injector": "dependency-injector",
    "cqrs_sync.container.dishka": "dishka",
    "cqrs_sync.testing.crash.plugin": "test",
}


def main() -> None:
    wheel = build()
    modules = check_content(wheel)
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = str(Path(directory, "bin", "python"))
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
        # -I: neither the checkout nor this script's directory is on the path, only what was installed.
        run(python, "-I", "-W", "error", __file__, json.dumps(modules))
    print(f"{wheel.name}: {len(modules)} modules checked in an empty environment")


def build() -> Path:
    # setuptools packs whatever an earlier build left in build/, modules that are gone included.
    for stale in (DIST, ROOT / "build"):
        shutil.rmtree(stale, ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "-w", DIST, ROOT)
    (wheel,) = DIST.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> list[str]:
    """The wheel's modules, once it holds the package with its marker of typing and nothing beside it."""
    names = ZipFile(wheel).namelist()
    strangers = [name for name in names if not name.startswith(("cqrs_sync/", "cqrs_sync-"))]
    assert not strangers, f"not the package's: {strangers}"
    assert "cqrs_sync/py.typed" in names, "py.typed is missing: type checkers would ignore the annotations"
    sources = [Path(name).with_suffix("") for name in names if name.endswith(".py")]
    return sorted(".".join(source.parts).removesuffix(".__init__") for source in sources)


def check_installed(modules: list[str]) -> None:
    """Runs in the empty environment."""
    importlib.import_module("cqrs_sync")
    loaded = sorted(set(NOT_LOADED) & set(sys.modules))
    assert not loaded, f"import cqrs_sync loads {loaded}"
    assert threading.active_count() == 1, "import cqrs_sync starts a thread"
    missing = {module: text for module in modules if (text := not_installed(module))}
    for module, extra in EXTRA_OF.items():
        assert f"cqrs-sync[{extra}]" in missing.get(module, ""), f"{module} must name its extra: {missing.get(module)}"


def not_installed(module: str) -> str | None:
    """What the module says about the extra that it lacks; None where it lacks nothing."""
    from cqrs_sync.errors import NotInstalled

    try:
        importlib.import_module(module)
    except NotInstalled as error:
        return str(error)
    return None


def run(*command: str | Path) -> None:
    if code := subprocess.run(command, cwd=DIST.parent, check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        check_installed(json.loads(sys.argv[1]))
    else:
        main()
