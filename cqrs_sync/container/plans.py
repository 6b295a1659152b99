"""Compile once, resolve often: how containers turn a class into a function that builds it.

Inspecting a constructor costs tens of microseconds, calling it a fraction of one. So a container that can say where
each parameter comes from makes a :class:`Plan` per class, once, and the engine calls ``plan.build()``.

An adapter for another container derives from :class:`PlanningContainer` and implements two methods:
``_provider(service)``, which returns a function that resolves a registered service (None for an unknown one), and
``is_shared(service)``. Classes that were never registered are then built from their constructor's annotations.
"""

from __future__ import annotations

import abc
import inspect
import threading
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

from cqrs_sync.codegen import Recipe
from cqrs_sync.errors import ConfigurationError, UnresolvableDependency, type_name

T = TypeVar("T")

Services: TypeAlias = Mapping[Any, Callable[[], Any]]
"""Types that come from the mediator (from its open unit of work, or itself), with what returns each."""


class Lasting:
    """A service that is not bound to a unit of work, so a singleton may keep it."""

    def __init__(self, provide: Callable[[], Any]) -> None:
        self._provide = provide

    def __call__(self) -> Any:
        return self._provide()


Provider: TypeAlias = Callable[[], Any]
"""Returns an object, a new one or a shared one."""

EMPTY: Any = inspect.Parameter.empty


class Plan:
    """How to build one type.

    ``build()`` may be called from many threads at once. The plan compiles on the first ``build()``, or with
    :meth:`compile`, and anew on the first one after :meth:`invalidate`.
    """

    __slots__ = ("__weakref__", "_compile", "_generation", "_lock", "build")

    def __init__(self, compile_: Callable[[], Callable[[], Any]]) -> None:
        self._compile = compile_
        self._generation = 0
        self._lock = threading.Lock()  # guards _generation and the setting of build
        self.build: Callable[[], Any] = self._rebuild

    def compile(self) -> Plan:
        """Compile now and return the plan; raises what stands in the way."""
        generation = self._generation
        self._keep(self._compile(), generation)
        return self

    def invalidate(self) -> None:
        """Forget the compiled form: registrations have changed."""
        with self._lock:
            self._generation += 1
            self.build = self._rebuild

    def _keep(self, build: Callable[[], Any], generation: int) -> None:
        with self._lock:
            if generation == self._generation:  # else an invalidation has overtaken the compilation
                self.build = build

    def _rebuild(self) -> Any:
        generation = self._generation
        build = self._compile()
        self._keep(build, generation)
        return build()


def parameters_of(builder: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that a call must or may fill, without ``*args`` and ``**kwargs``."""
    if _initializer(builder) is object.__init__ and getattr(builder, "__new__", None) is object.__new__:
        return []  # most handlers; a look at the signature would cost more than the rest of their plan
    try:
        parameters = inspect.signature(builder).parameters.values()
    except ValueError:  # a builtin without a signature
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind not in variadic]


def annotations_of(
    cls: type, services: Services = MappingProxyType({}), local_names: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The resolved annotations of a class's constructor; services are found by name too, wherever they were defined.

    Raises:
        UnresolvableDependency: an annotation names something that cannot be found.
    """
    try:
        names = {service.__name__: service for service in services} | dict(local_names or {})
        hints = typing.get_type_hints(_initializer(cls), None, names)
    except NameError as error:
        raise UnresolvableDependency(
            cls, None, error.name, f"annotation {error.name!r} cannot be found; import it where the class is defined"
        ) from error
    hints.pop("return", None)
    return hints


def _initializer(cls: Any) -> Any:
    return cls.__init__


def constant(value: Any) -> Provider:
    """Return a provider of one given object."""
    return lambda: value


def arrange(
    builder: Callable[..., Any], argument_for: Callable[[inspect.Parameter], T]
) -> tuple[list[T], dict[str, T]]:
    """Sort a builder's arguments into positional and keyword ones."""
    positional: list[T] = []
    keywords: dict[str, T] = {}
    for parameter in parameters_of(builder):
        argument = argument_for(parameter)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keywords[parameter.name] = argument
        else:
            positional.append(argument)
    return positional, keywords


class PlanningContainer(abc.ABC):
    """A container that compiles plans; the base of the adapters.

    Thread-safe as far as the foreign container is: plans only read.

    Args:
        container: the foreign container; it can be attached later.
    """

    def __init__(self, container: Any = None) -> None:
        self._lock = threading.Lock()  # guards _plans
        self._plans: WeakSet[Plan] = WeakSet()
        self._resolved: dict[Any, Plan] = {}
        self._external: Any = None
        if container is not None:
            self.attach_external_container(container)

    @property
    def external_container(self) -> Any:
        """The foreign container.

        Raises:
            ConfigurationError: none was attached.
        """
        if self._external is None:
            raise ConfigurationError(f"{type(self).__name__}: call attach_external_container(...) first")
        return self._external

    def attach_external_container(self, container: Any) -> None:
        """Use this foreign container from now on; plans made before compile anew."""
        self._external = container
        self.invalidate()

    def plan(self, type_: Any, services: Services, check: Callable[[], None] | None = None) -> Plan:
        """Return how to build the type; see :class:`~cqrs_sync.container.protocol.SupportsPlans`."""

        def compile_() -> Callable[[], Any]:
            if check is not None:
                check()
            return self._compile(type_, services)

        plan = Plan(compile_)
        with self._lock:
            self._plans.add(plan)  # before it compiles, so that no registration is missed
        return plan.compile()

    def resolve(self, type_: type[T]) -> T:
        """Build an object of the type, or return the shared one."""
        plan = self._resolved.get(type_)
        if plan is None:
            plan = self._resolved[type_] = self.plan(type_, {})
        built: T = plan.build()
        return built

    def invalidate(self) -> None:
        """Have every plan compile anew: registrations have changed."""
        with self._lock:
            plans = list(self._plans)
        for plan in plans:
            plan.invalidate()

    def knows(self, type_: Any) -> bool:
        """Whether the type is registered."""
        return self._provider(type_) is not None

    def is_made_by_function(self, type_: Any) -> bool:
        """Whether a function of the user's makes it, which may return the same object each time."""
        del type_  # only some containers can tell
        return False

    @abc.abstractmethod
    def is_shared(self, type_: Any) -> bool:
        """Whether every resolve returns the same object."""

    @abc.abstractmethod
    def _provider(self, service: Any) -> Callable[[], Any] | None:
        """Return what resolves a registered service, or None."""

    def _compile(self, type_: Any, services: Services) -> Callable[[], Any]:
        registered = self._provider(type_)
        if registered is not None:
            return registered
        if not isinstance(type_, type):
            raise UnresolvableDependency(type_, None, type_, "is not registered in the container")
        hints = annotations_of(type_, services)

        def provider_of(parameter: inspect.Parameter) -> Provider:
            return self._argument(type_, parameter, hints.get(parameter.name, EMPTY), services)

        positional, keywords = arrange(type_, provider_of)
        return finish(type_, positional, keywords)

    def _argument(self, owner: type, parameter: inspect.Parameter, annotation: Any, services: Services) -> Provider:
        if annotation is not EMPTY:
            found = services.get(annotation) or self._provider(annotation)
            if found is not None:
                return found
        if parameter.default is not EMPTY:
            return constant(parameter.default)
        raise unresolvable(owner, parameter.name, annotation)


def finish(builder: Callable[..., Any], positional: list[Provider], keywords: dict[str, Provider]) -> Provider:
    """Return what calls ``builder`` with what the other providers return; the builder itself where it needs nothing."""
    if not positional and not keywords:
        return builder
    recipe = Recipe()
    named = {name: recipe.call(provide) for name, provide in keywords.items()}
    return recipe.build(recipe.call(builder, [recipe.call(provide) for provide in positional], named))


def unresolvable(owner: Any, parameter: str, annotation: Any) -> UnresolvableDependency:
    """The error for a parameter that nothing fills, with its remedy."""
    if annotation is EMPTY:
        reason = f"it has no annotation; annotate it, give it a default, or register {parameter!r} by name"
    elif getattr(annotation, "__module__", "").startswith("sqlalchemy"):
        reason = f"{type_name(annotation)} is not registered; pass unit_of_work=SqlAlchemyUnitOfWork(sessionmaker)"
    elif getattr(annotation, "__name__", "") in ("OutboxedEventRepository", "SqlAlchemyOutboxedEventRepository"):
        remedy = "pass unit_of_work=SqlAlchemyUnitOfWork(sessionmaker, outbox=SqlAlchemyOutboxedEventRepository)"
        reason = f"{type_name(annotation)} is not registered; {remedy}"
    else:
        reason = f"{type_name(annotation)} is not registered in the container; register it, or give a default"
    return UnresolvableDependency(owner, parameter, annotation, reason)
