"""Functions by name, so that another process can find them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import operator
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.testing.crash.case import Case

Flow = str | Callable[[Case], object]
"""A function at the top of a module: itself, or ``"package.module:name"``, or ``"path/to/file.py:name"``."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where a function is."""

    module: str
    name: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    @classmethod
    def to(cls, flow: Flow) -> Reference:
        """Return where the function is.

        Raises:
            ConfigurationError: another process could not find it: a lambda, a bound method, an inner function.
        """
        if isinstance(flow, str):
            module, _, name = flow.rpartition(":")
            if not module or not name:
                raise ConfigurationError(f"{flow!r} is not 'package.module:name' or 'path/to/file.py:name'")
            if module.endswith(".py"):
                return cls(Path(module).stem, name, str(Path(module).resolve()))
            return cls(module, name)
        name = getattr(flow, "__qualname__", "<unnamed>")
        owner = getattr(flow, "__self__", None)
        file = getattr(sys.modules.get(flow.__module__), "__file__", None)
        if (
            "<" in name
            or not (owner is None or isinstance(owner, type))
            or (flow.__module__ == "__main__" and not file)
        ):
            raise ConfigurationError(f"{flow!r} is not at the top of a module, where another process could find it")
        return cls(flow.__module__, name, file and str(Path(file).resolve()))

    def load(self) -> Callable[[Case], object]:
        """Import the module and return the function."""
        found: Callable[[Case], object] = operator.attrgetter(self.name)(self._module())
        return found

    def _module(self) -> ModuleType:
        if self.file is None:
            return importlib.import_module(self.module)
        try:
            module = None if self.module == "__main__" else importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if not f"{self.module}.".startswith(f"{error.name}."):
                raise  # the module is there; what it imports is not
            module = None
        known: Any = getattr(module, "__file__", None)
        return module if module and known and os.path.samefile(known, self.file) else _module_at(self.file)


@functools.cache
def _module_at(file: str) -> ModuleType:
    """Load a file that is not to be had by a name on ``sys.path``, as pytest's importlib mode does."""
    name = f"crash_scenario_{zlib.crc32(file.encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{file} is not a Python module", path=file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module
