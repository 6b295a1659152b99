"""Opens what a scope strategy asks for: container scopes and units of work, around a handler or around a send."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from cqrs_sync.checks import require_instance
from cqrs_sync.container.plans import Lasting, Plan, Services
from cqrs_sync.container.protocol import Container, SupportsPlans, SupportsScope, as_container
from cqrs_sync.container.scope import Ambient, ScopeAwareContainer, ScopeStrategy, ambient_scope, scope_of
from cqrs_sync.unit_of_work.protocol import Unit, UnitOfWork

logger = logging.getLogger(__name__)

_send_scope: ContextVar[OpenScope | None] = ContextVar("cqrs_sync_send_scope", default=None)


class OpenScope:
    """One open scope: the container it resolves from and the unit of work it writes in.

    The scope of a send also keeps what is to be published after its commit (``deferred``), and nested sends join it.
    ``active()`` brackets the code that runs inside; a stream leaves it while its consumer has the word, so nothing
    leaks into the consumer's context.
    """

    def __init__(self, scoping: Scoping) -> None:
        self.key = scoping.key
        self.root = scoping.container
        self._for_sends = scoping.shared
        self.outer: OpenScope | None = None
        self._thread: int | None = threading.get_ident()
        self.deferred: list[Any] = []
        self.unit = Unit(scoping.unit_of_work) if scoping.unit_of_work is not None else None
        self._container_scope = scoping.open_container_scope()
        self._container = self._container_scope.__enter__()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the code in this block run inside the scope."""
        self._thread = threading.get_ident()
        with ExitStack() as stack:
            if self._container is not None:
                stack.callback(
                    ambient_scope.reset, ambient_scope.set(Ambient(self._container, self.root, self._thread))
                )
            if self.unit is not None:
                stack.enter_context(self.unit.active())
            if self._for_sends:
                self.outer = _send_scope.get()
                stack.callback(_send_scope.reset, _send_scope.set(self))
            yield

    def commit(self) -> None:
        """Commit what was written so far and stay open."""
        if self.unit is not None:
            self.unit.commit()

    @property
    def is_open_here(self) -> bool:
        """Whether it is open and belongs to this thread: a copied context may outlive it, or be run elsewhere."""
        return self._thread == threading.get_ident()

    @contextmanager
    def undone_alone(self) -> Iterator[None]:
        """Undo a block alone when it raises, rows and what it wanted to publish: the error may be caught outside."""
        mark = len(self.deferred)
        try:
            with nullcontext() if self.unit is None else self.unit.undone_alone():
                yield
        except BaseException:
            del self.deferred[mark:]
            raise

    def close(self, *, failed: bool) -> None:
        """End the unit of work, then the container's scope; called while an exception is handled if it failed."""
        self._thread = None
        try:
            if self.unit is not None:
                self.unit.close(failed=failed)
        except BaseException:
            self._container_scope.__exit__(*sys.exc_info())
            raise
        if failed:
            self._container_scope.__exit__(*sys.exc_info())
            return
        try:
            self._container_scope.__exit__(None, None, None)
        except Exception:
            if self.unit is None:
                raise  # the container's scope may be what commits
            logger.exception("a container's scope could not be closed; the unit of work was committed")

    @contextmanager
    def entered(self) -> Iterator[OpenScope]:
        """Run a block inside the scope and close it after."""
        try:
            with self.active():
                yield self
        except BaseException:
            self.close(failed=True)
            raise
        self.close(failed=False)


class Scoping:
    """A strategy applied to one container and one unit of work."""

    def __init__(
        self, container: Any, strategy: ScopeStrategy = ScopeStrategy.NONE, unit_of_work: UnitOfWork | None = None
    ) -> None:
        require_instance(strategy, ScopeStrategy, "scope_strategy", "pass cqrs_sync.ScopeStrategy.SEND, for example")
        if unit_of_work is not None:
            remedy = "pass SqlAlchemyUnitOfWork(sessionmaker), for example"
            require_instance(unit_of_work, UnitOfWork, "unit_of_work", remedy)
        container = as_container(container)
        self.container: Container = container.root if isinstance(container, ScopeAwareContainer) else container
        self.strategy = strategy
        self.unit_of_work = unit_of_work
        self.services: dict[Any, Callable[[], Any]] = {}
        if unit_of_work is not None:
            self.services.update(unit_of_work.injectables())
        # Mediators share an open send scope where they share what is scoped: the unit of work, else the container.
        self.key: object = unit_of_work
        if unit_of_work is None:
            self.key = getattr(self.container, "external_container", self.container)

    def offer(self, service: object) -> None:
        """Have handlers get this object where they ask for its class, unless the container knows that class."""
        kept = weakref.ref(service)
        known = isinstance(self.container, SupportsPlans) and self.container.knows(type(service))
        if not known:
            self.services[type(service)] = Lasting(kept)

    @property
    def shared(self) -> bool:
        """Whether a send's event handlers run inside its scope."""
        return self.strategy is ScopeStrategy.SEND

    @property
    def per_handler(self) -> bool:
        """Whether each handler's call opens something of its own."""
        has_scopes = isinstance(self.container, SupportsScope)
        return not self.shared and (
            self.unit_of_work is not None or (self.strategy is ScopeStrategy.HANDLER and has_scopes)
        )

    def open_container_scope(self) -> AbstractContextManager[Container | None]:
        """Open a scope of the container where the strategy asks for one and none can be joined."""
        joins = self.shared and scope_of(self.container) is not None
        if self.strategy is ScopeStrategy.NONE or joins or not isinstance(self.container, SupportsScope):
            return nullcontext()
        return self.container.open_scope()

    def open(self) -> OpenScope:
        """Open what one handler's call (SEND: one send) needs; the caller closes it."""
        return OpenScope(self)

    def open_send(self) -> OpenScope | None:
        """The send scope that is open in this thread for the same container and unit of work."""
        scope = _send_scope.get()
        while scope is not None and not (scope.key is self.key and scope.is_open_here):
            scope = scope.outer
        return scope

    @contextmanager
    def sending(self) -> Iterator[OpenScope]:
        """Run a send inside a scope of its own, or inside the one that is open here."""
        joined = self.open_send()
        if joined is not None:
            with joined.undone_alone(), self._own_container_scope():
                yield joined
            return
        with self.open().entered() as scope:
            yield scope

    @contextmanager
    def _own_container_scope(self) -> Iterator[None]:
        """Open a scope of this container inside a send that was begun by a mediator with another one."""
        with self.open_container_scope() as scoped, ExitStack() as stack:
            if scoped is not None:
                stack.callback(
                    ambient_scope.reset, ambient_scope.set(Ambient(scoped, self.container, threading.get_ident()))
                )
            yield


def plan_in(container: Container, handler_type: type, services: Services) -> Plan:
    """Return how a container of any kind builds a type."""
    if isinstance(container, SupportsPlans):
        return container.plan(handler_type, services)
    return Plan(lambda: lambda: container.resolve(handler_type))
