"""The container port: whatever resolves a type to an object."""

from __future__ import annotations

import importlib
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

    def plan(self, type_: Any, services: Services, check: Callable[[], None] | None = None) -> Plan:
        """Return how to build the type, with ``services`` before its own registrations.

        Args:
            check: called before each compilation, to refuse what later registrations have brought.

        Raises:
            UnresolvableDependency: naming the class and the parameter.
        """
        ...

    def knows(self, type_: Any) -> bool:
        """Whether the type is registered."""
        ...

    def is_made_by_function(self, type_: Any) -> bool:
        """Whether a function of the user's makes it, which may return the same object each time."""
        ...

    def is_shared(self, type_: Any) -> bool:
        """Whether every resolve returns the same object."""
        ...


_ADAPTERS = {
    "punq.Container": "cqrs_sync.container.punq:PunqContainer",
    "dishka.container.Container": "cqrs_sync.container.dishka:DishkaCQRSContainer",
    "dependency_injector.containers.Container": (
        "cqrs_sync.container.dependency_injector:DependencyInjectorCQRSContainer"
    ),
}
"""The adapter for each foreign container, both by name: none of them is imported before one of its kind turns up."""


def as_container(candidate: Any) -> Container:
    """Wrap a container of a known class; leave one that has ``resolve(type)`` as it is.

    Raises:
        ConfigurationError: it is neither.
    """
    for base in type(candidate).__mro__:
        found = _ADAPTERS.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            module, _, adapter = found.partition(":")
            wrapped: Container = getattr(importlib.import_module(module), adapter)(candidate)
            return wrapped
    if isinstance(candidate, Container) and not isinstance(candidate, type):
        return candidate
    raise ConfigurationError(
        f"di_container: {type_name(type(candidate))} is no container; pass a punq.Container, an adapter from "
        "cqrs_sync.container, or any object with resolve(type)"
    )
