"""dishka behind the container port, scopes included."""

from __future__ import annotations

import functools
import threading
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from typing import Any, Literal, NamedTuple, Self, TypeVar
from weakref import WeakKeyDictionary

from cqrs_sync.container.plans import (
    EMPTY,
    PlanningContainer,
    Provider,
    Services,
    annotations_of,
    finish,
    parameters_of,
)
from cqrs_sync.errors import ConfigurationError, NotInstalled, UnresolvableDependency, type_name

try:
    import dishka
    from dishka import DEFAULT_COMPONENT, DependencyKey
    from dishka.entities.factory_type import FactoryType
    from dishka.exceptions import NoFactoryError
except ImportError as _missing:
    raise NotInstalled.extra(__name__, "dishka") from _missing

T = TypeVar("T")


class DishkaCQRSContainer(PlanningContainer):
    """A synchronous ``dishka.Container`` (``make_container``, not ``make_async_container``).

    What is registered for dishka's application scope lives as long as the container. What is registered for an
    inner scope (``REQUEST``) is resolved inside of :meth:`open_scope` only: ``bootstrap`` opens one per send or per
    handler with ``scope_strategy=ScopeStrategy.SEND`` or ``HANDLER``. Generator factories are finalized when that
    scope is left, and see the exception it is left with.

    A handler registered for an inner scope is built anew for each call, though dishka would keep it for the whole
    scope: two events of one class in one send would share it, and their follow-up events.
    """

    _graph: _Graph

    def __init__(self, container: dishka.Container | None = None) -> None:
        super().__init__(container)

    @classmethod
    def of(cls, container: dishka.Container) -> Self:
        """Wrap a container that somebody else opened (dishka's own integration of a web framework, say)."""
        return cls(container)

    def attach_external_container(self, container: dishka.Container) -> None:
        """Use this container from now on.

        Raises:
            ConfigurationError: it is not a synchronous container of dishka.
        """
        if not isinstance(container, dishka.Container):
            raise ConfigurationError(f"{type_name(type(container))} is no dishka.Container; use make_container(...)")
        self._graph = _Graph(container)
        super().attach_external_container(container)

    @contextmanager
    def open_scope(self, context: Mapping[type, Any] | None = None) -> Iterator[DishkaCQRSContainer]:
        """Enter dishka's next scope and yield its container; leaving it finalizes what was built in it.

        Args:
            context: objects of this scope; dishka knows those that a provider declares with ``from_context``.
        """
        # Reentrant: context variables carry a scope into pool threads, and a factory may ask the container itself.
        scope = self.external_container(dict(context) if context else None, lock_factory=threading.RLock)
        with scope as inner:
            yield type(self)._inside(inner, self._graph)

    @classmethod
    def _inside(cls, container: dishka.Container, graph: _Graph) -> Self:
        scoped = cls()
        scoped._external = container
        scoped._graph = graph
        return scoped

    def resolve(self, type_: type[T]) -> T:
        """Return an object of this type; what dishka keeps for a scope is the same within that scope."""
        registered = self._provider(type_)
        if registered is None:
            return super().resolve(type_)
        resolved: T = registered()
        return resolved

    def is_shared(self, type_: Any) -> bool:
        """Whether the type is kept by the application scope, or by an inner one that cannot do without."""
        found = self._find(type_)
        return found is not None and found.kept and not found.renewable

    def _find(self, service: Any) -> _Found | None:
        _ = self.external_container  # says so where none is attached
        return self._graph.find(service)

    def _provider(self, service: Any) -> Callable[[], Any] | None:
        return None if self._find(service) is None else functools.partial(self._get, service)

    def _get(self, service: Any, component: str | None = DEFAULT_COMPONENT) -> Any:
        try:
            return self.external_container.get(service, component)
        except NoFactoryError as error:
            raise UnresolvableDependency(service, None, service, self._reason(service, error)) from error

    def _reason(self, service: Any, error: NoFactoryError) -> str:
        found = self._find(service)
        if found is None or found.level <= self._graph.level(self.external_container):
            return str(error)
        return (
            f"lives in dishka's scope {found.factory.scope.name} and none is open here; pass "
            "scope_strategy=ScopeStrategy.SEND or HANDLER to bootstrap, or resolve inside open_scope()"
        )

    def _compile(self, type_: Any, services: Services) -> Callable[[], Any]:
        found = self._find(type_)
        if found is not None:
            return self._anew(found.factory) if found.renewable else functools.partial(self._get, type_)
        if not isinstance(type_, type):
            raise UnresolvableDependency(type_, None, type_, "is not registered in the container")
        positional: list[Provider] = []
        keywords: dict[str, Provider] = {}
        for parameter, annotation in _constructor(type_):
            provider = self._argument(type_, parameter, annotation, services)
            if parameter.kind is Parameter.KEYWORD_ONLY:
                keywords[parameter.name] = provider
            else:
                positional.append(provider)
        return finish(type_, positional, keywords)

    def _anew(self, factory: Any) -> Callable[[], Any]:
        """What calls a factory with its dependencies, past the cache of its scope."""

        def provider_of(key: DependencyKey) -> Provider:
            return lambda: self._get(key.type_hint, key.component)

        positional = [provider_of(key) for key in factory.dependencies]
        keywords = {name: provider_of(key) for name, key in factory.kw_dependencies.items()}
        return finish(factory.source, positional, keywords)


class _Found(NamedTuple):
    """A factory that dishka has for a type.

    Attributes:
        level: how deep its scope is; 0 is the outermost.
        kept: whether the scope keeps what the factory made.
        renewable: whether the scope is an inner one and the factory can be called past what that scope keeps.
    """

    factory: Any
    level: int
    kept: bool
    renewable: bool


class _Graph:
    """The registries behind a container and all its scopes: they do not change once the container is made."""

    def __init__(self, container: dishka.Container) -> None:
        outer = [each.registry for each in _outer_containers(container)]
        self._registries = [*outer, *_inner_registries(container)]
        open_levels = (level for level, registry in enumerate(outer) if not registry.scope.skip)
        self._application_level = next(open_levels, len(outer) - 1)
        self._known: dict[Any, _Found | None] = {}

    def level(self, container: dishka.Container) -> int:
        """How deep a container's scope is."""
        return self._registries.index(container.registry)

    def find(self, service: Any) -> _Found | None:
        """The factory of a type in any scope, open or not; builds nothing."""
        try:
            return self._known[service]
        except KeyError:
            found = self._known[service] = self._look_up(DependencyKey(service, DEFAULT_COMPONENT))
            return found

    def _look_up(self, key: DependencyKey) -> _Found | None:
        for level, registry in enumerate(self._registries):
            factory = registry.get_factory(key)
            if factory is not None:
                if factory.type is FactoryType.ALIAS:
                    return self._look_up(factory.dependencies[0])
                kept = factory.cache or factory.type is FactoryType.CONTEXT
                inner = level > self._application_level
                return _Found(factory, level, kept, inner and _callable_with_plain_keys(factory))
        return None


def _outer_containers(container: dishka.Container) -> Iterator[dishka.Container]:
    if container.parent_container is not None:
        yield from _outer_containers(container.parent_container)
    yield container


def _inner_registries(container: Any) -> Iterator[Any]:
    if hasattr(container, "child_registries"):  # pragma: no cover (dishka 1.4 to 1.7)
        yield from container.child_registries
        return
    registry = container.registry.child_registry
    while registry is not None:
        yield registry
        registry = registry.child_registry


def _callable_with_plain_keys(factory: Any) -> bool:
    """Whether a factory can be called from outside: a class or function, of what the container itself can be asked."""
    keys = [*factory.dependencies, *factory.kw_dependencies.values()]
    condition = getattr(factory, "when_active", None)  # dishka 1.4 has no conditions, 1.10 a constant for none
    return (
        factory.type is FactoryType.FACTORY
        and (condition is None or getattr(condition, "value", None) is True)
        and not any(getattr(key, "depth", 0) or typing.get_origin(key.type_hint) is Literal for key in keys)
    )


# A scope lives for one send and plans anew: inspecting a constructor costs more than the rest of it.
_constructors: WeakKeyDictionary[type, list[tuple[Parameter, Any]]] = WeakKeyDictionary()


def _constructor(cls: type) -> list[tuple[Parameter, Any]]:
    """The parameters of a class with their resolved annotations."""
    known = _constructors.get(cls)
    if known is None:
        hints = annotations_of(cls)
        known = [(parameter, hints.get(parameter.name, EMPTY)) for parameter in parameters_of(cls)]
        _constructors[cls] = known
    return known
