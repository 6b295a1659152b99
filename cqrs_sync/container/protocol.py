"""The container port: whatever resolves a type to an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

from cqrs_sync.container.plans import Plan, Services
from cqrs_sync.errors import ConfigurationError, type_name

T = TypeVar("T")


@runtime_checkable
class Container(Protocol):
    """Anything with ``resolve(type)``; called from many threads at once."""

    def resolve(self, type_: type[T]) -> T:
        """Return an object of this type: a new one each time for handlers."""
        ...


@runtime_checkable
class SupportsScope(Protocol):
    """A container that can open a scope of its own (one database session for one request, say)."""

    def open_scope(self, context: Mapping[type, Any] | None = None) -> AbstractContextManager[Container]:
        """Enter a new scope and yield a *new* container; leaving it finalizes what the scope built.

        Args:
            context: objects that exist in this scope only.
        """
        ...


@runtime_checkable
class SupportsPlans(Protocol):
    """A container that can decide once how a type is built; see :mod:`cqrs_sync.container.plans`."""

    def plan(self, type_: Any, services: Services) -> Plan:
        """Return how to build the type, with ``services`` before its own registrations.

        Raises:
            UnresolvableDependency: naming the class and the parameter.
        """
        ...

    def knows(self, type_: Any) -> bool:
        """Whether the type is registered."""
        ...

    def is_shared(self, type_: Any) -> bool:
        """Whether every resolve returns the same object."""
        ...


_adapters: dict[type, Callable[[Any], Container]] = {}


def register_adapter(foreign_type: type, adapter: Callable[[Any], Container]) -> None:
    """Have containers of a foreign class wrapped by ``adapter``; called by adapters' modules when imported."""
    _adapters[foreign_type] = adapter


def as_container(candidate: Any) -> Container:
    """Wrap a container of a known class; leave one that has ``resolve(type)`` as it is.

    Raises:
        ConfigurationError: it is neither.
    """
    for foreign_type, adapter in _adapters.items():
        if isinstance(candidate, foreign_type):
            return adapter(candidate)
    if isinstance(candidate, Container):
        return candidate
    raise ConfigurationError(
        f"di_container: {type_name(type(candidate))} is no container; pass a punq.Container, an adapter from "
        "cqrs_sync.container, or any object with resolve(type)"
    )
