"""Runs one handler, a chain or a handler with a fallback: builds it, calls it, takes its events.

Everything is decided when an :data:`Invoke` is made, once per bound class; calling it does the rest.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from cqrs_sync.checks import is_async
from cqrs_sync.circuit_breaker import should_use_fallback
from cqrs_sync.codegen import define
from cqrs_sync.container.plans import Plan
from cqrs_sync.container.protocol import SupportsPlans
from cqrs_sync.container.scope import ambient_scope, scope_of
from cqrs_sync.errors import (
    EventHandlerTypeError,
    HandlerTypeError,
    RequestHandlerTypeError,
    SharedHandlerError,
    type_name,
)
from cqrs_sync.events.emits_events import EmitsEvents, lists_events
from cqrs_sync.events.event import IEvent
from cqrs_sync.events.event_handler import EventHandler
from cqrs_sync.events.fallback import EventHandlerFallback
from cqrs_sync.middlewares.base import Layers
from cqrs_sync.requests.cor_request_handler import CORRequestHandler, build_chain
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.scoping import Scoping, plan_in

logger = logging.getLogger(__name__)

Events: TypeAlias = Sequence[IEvent]

Stage: TypeAlias = Callable[[Events], Events]
"""Takes a handler's events inside its unit of work: checks (or stores) them and returns those left to emit."""

Outcome: TypeAlias = tuple[Any, Events]
"""A response and the events that go with it."""

Invoke: TypeAlias = Callable[[Any], Outcome]
"""Handles one message with new handlers."""


class HandlerFactory:
    """Builds the handlers of one class: from ``plan``, or from the scope that is open here if there is one."""

    def __init__(self, scoping: Scoping, handler_type: type[EmitsEvents]) -> None:
        container = scoping.container
        self._scoping = scoping
        self.handler_type = handler_type
        self._shared = False
        _refuse_coroutines(handler_type)
        if isinstance(vars(handler_type).get("events"), list):
            raise self._error()
        if isinstance(container, SupportsPlans):
            _refuse_abstract(container, handler_type)
            self.plan = container.plan(handler_type, scoping.services, functools.partial(self._check, container))
            if container.is_made_by_function(handler_type):
                made = self.plan
                self.plan = Plan(lambda: lambda: self._distinct(made.build())).compile()
        else:
            self.plan = Plan(lambda: self._build_distinct).compile()

    def _check(self, container: SupportsPlans) -> None:
        """Refuse a shared handler with state; asked again when registrations change."""
        self._shared = container.is_shared(self.handler_type)
        if self._shared and self._has_state:
            raise self._error()

    def __call__(self) -> Any:
        """Build a handler."""
        return self.plan.build() if ambient_scope.get() is None else self.build_in_scope()

    def build_in_scope(self) -> Any:
        """Build a handler from the container scope that is open here, if it counts for this container."""
        scoped = scope_of(self._scoping.container)
        if scoped is None:
            return self.plan.build()
        return self._distinct(plan_in(scoped, self.handler_type, self._scoping.services).build())

    def stage(self, stage: Stage) -> Stage:
        """Return ``stage`` behind what refuses the events of a shared handler."""

        def unless_shared(events: Events) -> Events:
            if self._shared:
                raise self._error()
            return stage(events)

        return unless_shared

    @property
    def _has_state(self) -> bool:
        """Whether instances carry something from one call to the next: events, or a place in a chain."""
        return lists_events(self.handler_type) or issubclass(self.handler_type, CORRequestHandler)

    def _build_distinct(self) -> Any:
        """Resolve from a container of unknown kind."""
        return self._distinct(self._scoping.container.resolve(self.handler_type))

    def _distinct(self, handler: Any) -> Any:
        """Refuse a handler with state that is handed out a second time, where nobody could be asked beforehand."""
        first = object()
        # Marks the object itself: it may come back by turns, or to another thread.
        used = getattr(handler, "__dict__", {}).setdefault("_cqrs_sync_used", first) is not first
        if used and (self._has_state or handler.events):
            raise self._error()
        return handler

    def _error(self) -> SharedHandlerError:
        name = type_name(self.handler_type)
        return SharedHandlerError(
            f"{name} is a singleton (or has a list of events in its class) but keeps events, or its place in a chain, "
            "on itself, which would leak from one call into the next; register it as transient, or leave it "
            "unregistered, and give each instance its own list",
            self.handler_type,
        )


def _refuse_coroutines(handler_type: type[Any]) -> None:
    if is_async(getattr(handler_type, "handle", None)):
        error = EventHandlerTypeError if issubclass(handler_type, EventHandler) else RequestHandlerTypeError
        raise error(f"{type_name(handler_type)}.handle is async: take out async and await", handler_type)


def _refuse_abstract(container: SupportsPlans, handler_type: type[Any]) -> None:
    if inspect.isabstract(handler_type) and not container.knows(handler_type):
        missing = ", ".join(sorted(handler_type.__abstractmethods__))
        raise HandlerTypeError(f"{type_name(handler_type)} is abstract: implement {missing}", handler_type)


def invoke_handler(scoping: Scoping, handler_type: type[Any], stage: Stage) -> Invoke:
    """Return what builds a handler, calls it and takes its events."""
    factory = HandlerFactory(scoping, handler_type)
    plan, build_in_scope, take = factory.plan, factory.build_in_scope, factory.stage(stage)
    ambient = ambient_scope.get

    # The hottest function of the library: what HandlerFactory.__call__ does is written out to save its frame.
    def invoke(message: Any) -> Outcome:
        handler = plan.build() if ambient() is None else build_in_scope()
        response = handler.handle(message)
        events = handler.events
        return response, take(events) if events else ()

    return _in_scope_of_its_own(scoping, invoke)


def invoke_chain(scoping: Scoping, handler_types: Sequence[type[CORRequestHandler[Any, Any]]], stage: Stage) -> Invoke:
    """Return what builds and links a chain, calls its head and takes the events of every handler that ran."""
    factories = [HandlerFactory(scoping, handler_type) for handler_type in handler_types]

    def invoke(message: Any) -> Outcome:
        head = build_chain([build() for build in factories])
        response = head.handle(message)
        events = head.chain_events()
        return response, stage(events) if events else ()

    return _in_scope_of_its_own(scoping, invoke)


def _in_scope_of_its_own(scoping: Scoping, invoke: Invoke) -> Invoke:
    if not scoping.per_handler:
        return invoke

    def invoke_in_scope(message: Any) -> Outcome:
        with scoping.open().entered():
            return invoke(message)

    return invoke_in_scope


def invoke_with_fallback(
    scoping: Scoping, binding: RequestHandlerFallback | EventHandlerFallback, primary: Invoke, fallback: Invoke
) -> Invoke:
    """Return what tries one handler, behind its circuit breaker, and then the other."""
    breaker = binding.circuit_breaker
    attempt = _undone_alone(scoping, primary)

    def invoke(message: Any) -> Outcome:
        try:
            if breaker is None:
                return attempt(message)
            outcome: Outcome = breaker.call(binding.primary, attempt, message)
            return outcome
        except Exception as error:
            if not should_use_fallback(error, breaker, binding.failure_exceptions):
                raise
            log_fallback(binding, error)
            return fallback(message)

    return invoke


def _undone_alone(scoping: Scoping, invoke: Invoke) -> Invoke:
    """In a shared unit of work, what a failed primary wrote must not be committed with the fallback's writes."""
    if not scoping.shared:
        return invoke

    def attempt(message: Any) -> Outcome:
        scope = scoping.open_send()
        if scope is None:
            return invoke(message)
        with scope.undone_alone():
            return invoke(message)

    return attempt


def log_fallback(binding: RequestHandlerFallback | EventHandlerFallback, error: Exception) -> None:
    """Log that a fallback takes over, and why."""
    breaker = binding.circuit_breaker
    is_open = breaker is not None and breaker.is_circuit_breaker_error(error)
    logger.log(
        logging.DEBUG if is_open else logging.WARNING,  # that it has opened was logged by the breaker, once
        "%s: %s; its fallback %s takes over",
        type_name(binding.primary),
        "its circuit is open" if is_open else f"{type(error).__name__} was raised",
        type_name(binding.fallback),
        exc_info=None if is_open else error,
    )


_THROUGH = """
def through(message):
    events = ()

    def handle(message):
        nonlocal events
{call}
        if more:
            events = (*events, *more)
        return response

    response = {nested}
    return response, events
"""

_CALL_INVOKE = """
        response, more = invoke(message)
"""

# What invoke_handler() does, in place of a call of it.
_CALL_HANDLER = """
        handler = plan.build() if ambient() is None else build_in_scope()
        response = handler.handle(message)
        more = handler.events
        if more:
            more = take(more)
"""


def through_middlewares(layers: Layers, invoke: Invoke) -> Invoke:
    """Return ``invoke`` with middlewares around it, which see the request and the response but not the events.

    What a middleware calls to go on keeps the events of every call that succeeded, because its work stands. The nesting
    is written out, so that a further middleware costs its own call and one more.
    """
    return _nest(layers, _CALL_INVOKE, {"invoke": invoke}) if layers else invoke


def invoke_handler_through(layers: Layers, scoping: Scoping, handler_type: type[Any], stage: Stage) -> Invoke:
    """Return :func:`invoke_handler` with middlewares around it; in one function where it has no scope of its own."""
    if not layers or scoping.per_handler:
        return through_middlewares(layers, invoke_handler(scoping, handler_type, stage))
    factory = HandlerFactory(scoping, handler_type)
    names = {
        "plan": factory.plan,
        "ambient": ambient_scope.get,
        "build_in_scope": factory.build_in_scope,
        "take": factory.stage(stage),
    }
    return _nest(layers, _CALL_HANDLER, names)


def _nest(layers: Layers, call: str, names: dict[str, Any]) -> Invoke:
    named = {f"layer{number}": layer for number, layer in enumerate(layers)}
    nested = "handle"
    for name in reversed(named):
        nested = f"{name}(message, {nested if nested == 'handle' else f'lambda message: {nested}'})"
    return define("through", _THROUGH.format(call=call, nested=nested), {**named, **names})
