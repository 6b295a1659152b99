"""Functions that are put together from text, as the standard library's dataclasses are.

Building a handler and passing a call through middlewares take less time than the calls of a closure for each part; so
the two are written out as one function each, once, when an application starts. Only the shape is text: classes and
functions come in by name, and nothing of a message ever does.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any


def define(name: str, source: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Run a function's source with these names around it, and return the function."""
    exec(_code(source), names)
    function: Callable[..., Any] = names[name]
    return function


@functools.cache
def _code(source: str) -> CodeType:
    """Compile a shape once, however many handlers have it; its lines show in tracebacks."""
    filename = f"<cqrs_sync: generated function {len(source)}-{hash(source)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec")


class Recipe:
    """Writes the function that builds an object out of others."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {}
        self._lines: list[str] = []
        self._kept: dict[object, str] = {}

    def use(self, value: Any) -> str:
        """Return the name under which the function finds a value."""
        name = f"v{len(self._names)}"
        self._names[name] = value
        return name

    def call(
        self, function: Callable[..., Any], positional: Iterable[str] = (), keywords: Mapping[str, str] | None = None
    ) -> str:
        """Return the expression that calls a function with what other expressions return."""
        named = (f"{name}={expression}" for name, expression in (keywords or {}).items())
        return f"{self.use(function)}({', '.join([*positional, *named])})"

    def keep(self, key: object, expression: Callable[[], str]) -> str:
        """Return the variable that keeps what an expression returns, for all that need it in one call."""
        if key not in self._kept:
            value = expression()
            self._kept[key] = f"k{len(self._kept)}"
            self._lines.append(f"    {self._kept[key]} = {value}\n")
        return self._kept[key]

    def build(self, expression: str) -> Callable[[], Any]:
        """Return the function that evaluates an expression."""
        return define("build", f"def build():\n{''.join(self._lines)}    return {expression}\n", self._names)
