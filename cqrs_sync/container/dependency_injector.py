"""dependency-injector behind the container port: its providers are found by the type of what they provide."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Generator, Iterable, Iterator
from inspect import Parameter
from typing import Any, NamedTuple

from cqrs_sync.container.plans import PlanningContainer, Provider, Services
from cqrs_sync.errors import ConfigurationError, NotInstalled, UnresolvableDependency, type_name

try:
    from dependency_injector import containers, providers, resources
except ImportError as _missing:
    raise NotInstalled.extra(__name__, "dependency-injector") from _missing

_Resource: Any = getattr(providers, "BaseResource", providers.Resource)  # of 4.49, with ContextLocalResource


class DependencyInjectorCQRSContainer(PlanningContainer):
    """A dependency-injector container, with its nested containers, asked by type.

    A provider is found for its own class first, then for a base class or protocol of it; two that fit are an
    error. What counts as its class: of ``Factory``, ``Singleton``, ``Callable`` and ``Resource`` the class they
    build or the return annotation of the function they call, of ``Object`` the class of its value, of
    ``Dependency`` its ``instance_of`` where no other provider fits. Built-in types (``str``, ``dict``) are never
    found by type: give such parameters a default, or the class a provider of its own.

    Providers are looked up when the container is attached and called by their path each time, so ``override()``
    takes effect at once; after adding providers, attach the container again. Threads resolve side by side: use
    ``ThreadSafeSingleton``, a plain ``Singleton`` may be built once per racing thread.
    """

    def __init__(self, container: Any = None) -> None:
        self._entries: dict[Any, list[_Entry]] = {}
        super().__init__(container)

    def attach_external_container(self, container: Any) -> None:
        """Use this container (an instance or a declarative class) from now on.

        Raises:
            ConfigurationError: it is not of dependency-injector.
        """
        declarative = isinstance(container, type) and issubclass(container, containers.Container)
        if not (declarative or isinstance(container, containers.Container)):
            raise ConfigurationError(f"{type_name(type(container))} is no container of dependency-injector")
        self._entries = _index(container)
        super().attach_external_container(container)

    def is_shared(self, type_: Any) -> bool:
        """Whether the provider, or what overrides it, hands out the same object each time (or in each thread)."""
        container = self.external_container
        entry = self._find(type_)
        if entry is None:
            return False
        provider = _effective(_at(container, entry.path))
        return isinstance(provider, (providers.BaseSingleton, providers.Object, _Resource))

    def _provider(self, service: Any) -> Callable[[], Any] | None:
        container = self.external_container
        entry = self._find(service)
        if entry is None:
            return None
        path = entry.path
        if len(path) == 1:
            name = path[0]
            return lambda: getattr(container, name)()
        return lambda: _at(container, path)()

    def _argument(self, owner: type, parameter: Parameter, annotation: Any, services: Services) -> Provider:
        try:
            return super()._argument(owner, parameter, annotation, services)
        except UnresolvableDependency as error:
            if error.owner is owner:
                raise
            raise UnresolvableDependency(owner, parameter.name, annotation, str(error)) from error

    def _find(self, service: Any) -> _Entry | None:
        fitting = self._entries.get(service)
        if fitting is None:
            fitting = [entry for type_, entries in self._entries.items() if _fits(type_, service) for entry in entries]
        # A Dependency stands for a provider elsewhere, most often for one that is listed here too.
        fitting = [entry for entry in fitting if not entry.stands_in] or fitting
        if len(fitting) > 1:
            names = ", ".join(f"{'.'.join(entry.path)} ({type_name(entry.type)})" for entry in fitting)
            raise UnresolvableDependency(
                service, None, service, f"several providers fit: {names}; ask for one of their classes, or leave one"
            )
        return fitting[0] if fitting else None


class _Entry(NamedTuple):
    """A provider: what it provides, the names that lead to it, and whether it only stands in for another one."""

    type: Any
    path: tuple[str, ...]
    stands_in: bool


def _index(container: Any) -> dict[Any, list[_Entry]]:
    entries: dict[Any, list[_Entry]] = {}
    seen: set[int] = set()
    for path, provider in _walk(container, ()):
        provided = _provided_type(provider)
        # One provider under two names is no ambiguity.
        if provided is not None and id(provider) not in seen:
            seen.add(id(provider))
            stands_in = isinstance(provider, providers.Dependency)
            entries.setdefault(provided, []).append(_Entry(provided, path, stands_in))
    return entries


def _walk(container: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, provider in container.providers.items():
        if isinstance(provider, providers.Container):
            yield from _walk(provider, (*path, name))
        else:
            yield (*path, name), provider


def _provided_type(provider: Any) -> Any:
    """What a provider is found by, or None if it is not found by type."""
    provided: Any = None
    if isinstance(provider, providers.Dependency):
        provided = provider.instance_of
    elif isinstance(provider, providers.Configuration | providers.DependenciesContainer | providers.Coroutine):
        pass
    elif isinstance(provider, providers.Object):
        provided = type(provider.provides)
    elif isinstance(provider, _Resource):
        provided = _resource_type(provider.provides)
    elif isinstance(provider, providers.Factory | providers.BaseSingleton | providers.Callable):
        provided = provider.provides if isinstance(provider.provides, type) else _return_type(provider.provides)
    return None if _is_builtin(provided) else provided


def _resource_type(provides: Any) -> Any:
    """What a resource function yields or returns, or a resource class's ``init`` returns."""
    if isinstance(provides, type):
        return _return_type(provides.init) if issubclass(provides, resources.Resource) else provides
    returned = _return_type(provides)
    if typing.get_origin(returned) in (Iterator, Iterable, Generator):
        return typing.get_args(returned)[0]
    return returned


def _return_type(function: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return None
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError):  # an annotation for type checkers only; not a function
        return None


def _is_builtin(provided: Any) -> bool:
    return provided is None or getattr(provided, "__module__", None) in ("builtins", "typing")


def _fits(provided: Any, service: Any) -> bool:
    """Whether an object of the provided type is one of the service."""
    if not (isinstance(provided, type) and isinstance(service, type)) or _is_builtin(service):
        return False
    try:
        return issubclass(provided, service)
    except TypeError:  # a protocol that is not checkable at run time, or that has data members
        return service in provided.__mro__


def _at(container: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(getattr, path, container)


def _effective(provider: Any) -> Any:
    """The provider that answers: what overrides it last, or what a dependency falls back to."""
    while True:
        instead = provider.last_overriding
        if instead is None and isinstance(provider, providers.Dependency):
            instead = provider.default
        if instead is None:
            return provider
        provider = instead
