"""punq behind the container port, with compiled plans.

``punq.Container.resolve`` inspects constructors at every call (22 to 305 µs) and builds a singleton once per racing
thread. A plan is made by walking punq's registrations once, the way punq itself walks them in one resolve:

* the last registration of a service wins, and a registration that asks for its own service gets the one before it
  (the decorator pattern);
* a transient that two consumers of one resolve need is built once for both;
* singletons are built once, under a lock, and kept where punq keeps them, so ``container.resolve`` sees the same ones;
* a class that was never registered is built from its constructor's annotations, as ``container.instantiate`` does.

What punq leaves open is filled in: a parameter without annotation takes the service registered under its name
(``container.register("inventory", instance=...)``), and ``list[T]`` respects singletons.
"""

from __future__ import annotations

import functools
import os
import threading
import typing
from collections.abc import Callable
from inspect import Parameter
from typing import Any, TypeAlias
from weakref import WeakSet

import punq

from cqrs_sync.codegen import Recipe
from cqrs_sync.container.plans import (
    EMPTY,
    Lasting,
    PlanningContainer,
    Provider,
    Services,
    annotations_of,
    arrange,
    parameters_of,
    unresolvable,
)
from cqrs_sync.errors import UnresolvableDependency, type_name

_LOCK = "cqrs_sync: lock for building singletons"


class PunqContainer(PlanningContainer):
    """A ``punq.Container`` with compiled plans. ``bootstrap`` wraps a plain one by itself.

    Thread-safe. A later ``register`` on the container or its parents is seen by the next resolve.
    """

    def attach_external_container(self, container: punq.Container) -> None:
        """Use this punq container from now on."""
        super().attach_external_container(container)
        _watch(container, self)

    def is_shared(self, type_: Any) -> bool:
        """Whether the last registration of the type is a singleton or an instance."""
        registrations = _registrations(self.external_container, type_)
        return bool(registrations) and registrations[-1].scope is punq.Scope.singleton

    def is_made_by_function(self, type_: Any) -> bool:
        """Whether the last registration of the type has a factory that is no class."""
        registrations = _registrations(self.external_container, type_)
        return bool(registrations) and not isinstance(registrations[-1].builder, type)

    def _provider(self, service: Any) -> Callable[[], Any] | None:
        registered = _registrations(self.external_container, service)
        return functools.partial(self.resolve, service) if registered else None

    def _compile(self, type_: Any, services: Services) -> Callable[[], Any]:
        return _Compilation(self.external_container, services).compile(type_)


class _Given:
    """A part that is there already: a default, or an argument given with the registration."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def expression(self, recipe: Recipe) -> str:
        return recipe.use(self._value)


class _Provided:
    """A part that comes from elsewhere at each resolve: from the unit of work, or once for all."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def expression(self, recipe: Recipe) -> str:
        return recipe.call(self._provider)


class _Build:
    """A part that a builder makes from other parts; built once per resolve where it has several consumers."""

    def __init__(self, builder: Callable[..., Any]) -> None:
        self.builder = builder
        self.positional: list[_Part] = []
        self.keywords: dict[str, _Part] = {}
        self.consumers = 1

    def expression(self, recipe: Recipe) -> str:
        return self._call(recipe) if self.consumers == 1 else recipe.keep(self, lambda: self._call(recipe))

    def _call(self, recipe: Recipe) -> str:
        positional = [part.expression(recipe) for part in self.positional]
        return recipe.call(
            self.builder, positional, {name: part.expression(recipe) for name, part in self.keywords.items()}
        )

    def provider(self) -> Provider:
        if not self.positional and not self.keywords:
            return self.builder
        recipe = Recipe()
        return recipe.build(self.expression(recipe))


class _All:
    """A part that is the list of everything registered for a service."""

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts

    def expression(self, recipe: Recipe) -> str:
        return f"[{', '.join(part.expression(recipe) for part in self._parts)}]"


_Part: TypeAlias = _Given | _Provided | _Build | _All


class _Compilation:
    """One walk over the registrations; its state is what punq keeps for one resolve."""

    def __init__(
        self,
        container: punq.Container,
        services: Services,
        path: tuple[tuple[Any, Any], ...] = (),
        singleton: Any = None,
    ) -> None:
        self._container = container
        self._services = services
        self._path = path  # the (service, registration) pairs that are being built, outermost first
        self._singleton = singleton
        self._remaining: dict[Any, list[Any]] = {}
        self._built: dict[Any, _Part] = {}

    def compile(self, type_: Any) -> Callable[[], Any]:
        """Return the function that resolves the type, registered or not."""
        registration = self._next(type_)
        if registration is not None:
            part = self._registered(registration)
        elif isinstance(type_, type):
            part = self._unregistered(type_)
        else:
            raise UnresolvableDependency(type_, None, type_, "is not registered in the container")
        if isinstance(part, _Build):
            return part.provider()
        recipe = Recipe()
        return recipe.build(part.expression(recipe))

    def _next(self, service: Any) -> Any:
        if service not in self._remaining:
            self._remaining[service] = _registrations(self._container, service)
        remaining = self._remaining[service]
        if not remaining:
            return None
        return remaining.pop() if remaining[-1].cache else remaining[-1]

    def _service(self, service: Any, owner: Any, parameter: Parameter) -> _Part:
        if service in self._services:
            return self._scoped(service, owner, parameter)
        if service in self._built:
            return self._share(self._built[service])
        if typing.get_origin(service) is list:
            return self._all(typing.get_args(service)[0])
        registration = self._next(service)
        if registration is not None and all(registration is not open_one for _, open_one in self._path):
            return self._registered(registration)
        if parameter.default is not EMPTY:
            return _Given(parameter.default)
        steps = [step for step, _ in self._path]
        if service in steps:
            circle = " -> ".join(type_name(step) for step in (*steps[steps.index(service) :], service))
            raise UnresolvableDependency(owner, parameter.name, service, f"depends on itself: {circle}")
        if self._container._auto_register and isinstance(service, type):
            return self._unregistered(service)
        raise unresolvable(owner, parameter.name, service)

    def _scoped(self, service: Any, owner: Any, parameter: Parameter) -> _Part:
        provide = self._services[service]
        if self._singleton is not None and not isinstance(provide, Lasting):
            raise UnresolvableDependency(
                owner,
                parameter.name,
                service,
                f"{type_name(service)} lives for one unit of work and {type_name(self._singleton)} is a singleton "
                "that would keep it for ever; register that one as transient",
            )
        return _Provided(provide)

    def _share(self, part: _Part) -> _Part:
        if isinstance(part, _Build):
            part.consumers += 1
        return part

    def _registered(self, registration: Any) -> _Part:
        part: _Part
        if registration.scope is punq.Scope.singleton:
            # What a singleton is made of is not shared with whatever happens to be resolved first.
            inner = _Compilation(self._container, self._services, self._path, registration.service)
            inner._remaining = self._remaining
            build = inner._build(registration)
            part = _Provided(_once_for_all(build.provider(), self._container._singletons, registration))
        else:
            part = self._build(registration)
        if registration.cache:
            self._built[registration.service] = part
        return part

    def _unregistered(self, cls: type) -> _Build:
        hints = annotations_of(cls, self._services, self._container.registrations._localns)
        return self._assemble(cls, cls, None, hints, {})

    def _build(self, registration: Any) -> _Build:
        service, builder = registration.service, registration.builder
        return self._assemble(builder, service, registration, registration.needs, registration.args)

    def _assemble(
        self,
        builder: Callable[..., Any],
        service: Any,
        registration: Any,
        needs: dict[str, Any],
        given: dict[str, Any],
    ) -> _Build:
        owner = builder if isinstance(builder, type) else service
        if given:
            named = {parameter.name for parameter in parameters_of(builder)}
            builder = functools.partial(builder, **{name: given[name] for name in given if name not in named})
        build = _Build(builder)
        outer, self._path = self._path, (*self._path, (service, registration))
        build.positional, build.keywords = arrange(builder, lambda p: self._argument(p, owner, needs, given))
        self._path = outer
        return build

    def _argument(self, parameter: Parameter, owner: Any, needs: dict[str, Any], given: dict[str, Any]) -> _Part:
        name = parameter.name
        if name in given:
            return _Given(given[name])
        if name in needs:
            return self._service(needs[name], owner, parameter)
        if parameter.default is EMPTY and not _registrations(self._container, name):
            raise unresolvable(owner, name, EMPTY)
        return self._service(name, owner, parameter)

    def _all(self, service: Any) -> _Part:
        elements = _Compilation(self._container, self._services, self._path, self._singleton)
        return _All([elements._registered(registration) for registration in _registrations(self._container, service)])


def _once_for_all(provide: Provider, singletons: dict[Any, Any], registration: Any) -> Provider:
    key = id(registration)  # punq's own key

    def single() -> Any:
        try:
            return singletons[key]
        except KeyError:
            pass
        # A lock for each singleton, kept beside it, as parent and child containers share both; and for each process,
        # because a fork may leave one locked for ever. Held while the constructor runs: that is what it is for.
        with singletons.setdefault((_LOCK, key, os.getpid()), threading.RLock()):
            return singletons[key] if key in singletons else singletons.setdefault(key, provide())

    single.registration = registration  # type: ignore[attr-defined]  # its id must not be used again
    return single


def _registrations(container: punq.Container, service: Any) -> list[Any]:
    """All registrations of a service, the parent containers' first."""
    return container.registrations.build_context(service).all_registrations(service)


_watching = threading.Lock()
"""Guards the sets of adapters that are told of registrations."""


def _watch(container: punq.Container, adapter: PunqContainer) -> None:
    """Have every later registration, here or in a parent, invalidate the adapter's plans."""
    scope: Any = container.registrations._Registry__registrations  # type: ignore[attr-defined]
    while scope is not None:
        watchers = scope.__dict__.get("_cqrs_sync_watchers")
        if watchers is None:
            watchers = scope._cqrs_sync_watchers = WeakSet()
            scope.append = functools.partial(_append_and_tell, scope.append, watchers)
        with _watching:
            watchers.add(adapter)
        scope = scope.parent


def _append_and_tell(
    append: Callable[[Any, Any], None], watchers: WeakSet[PunqContainer], key: Any, value: Any
) -> None:
    append(key, value)
    with _watching:
        adapters = list(watchers)
    for adapter in adapters:
        adapter.invalidate()
