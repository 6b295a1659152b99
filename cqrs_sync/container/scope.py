"""Where a dependency-injection scope begins and ends, and which one is open here."""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from cqrs_sync.container.protocol import Container, SupportsScope, as_container

T = TypeVar("T")


class ScopeStrategy(enum.Enum):
    """What shares a container scope and a unit of work.

    NONE: no container scope; with a unit of work, each handler writes in one of its own. The default.
    HANDLER: a container scope and a unit of work for each handler, event handlers included.
    SEND: one of each for a whole ``send`` (or stream): its event handlers run inside, one after another, in the same
        transaction; notification events are published after the commit. A nested ``send`` joins it.

    With NONE and HANDLER a nested ``send`` commits by itself, events included, whatever becomes of the handler that
    called it; and a handler that has written and then waits for a nested one that needs the same row (on SQLite: that
    writes at all) waits for itself. Send first and write after, or use SEND.
    """

    NONE = "none"
    HANDLER = "handler"
    SEND = "send"


class Ambient(NamedTuple):
    """The scoped container that is open in a context.

    Attributes:
        container: what to resolve from.
        root: the container that opened it, for which alone it counts; None: whoever asks.
        thread: the thread it was opened in, for which alone it counts: what lives in a scope (a session, say) serves
            one thread, and contexts are copied to others.
    """

    container: Container
    root: Container | None
    thread: int

    @property
    def is_open_here(self) -> bool:
        """Whether it counts for this thread."""
        return self.thread == threading.get_ident()


ambient_scope: ContextVar[Ambient | None] = ContextVar("cqrs_sync_container", default=None)


def current_container() -> Container | None:
    """Return the scoped container that is open in this context, or None."""
    ambient = ambient_scope.get()
    return ambient.container if ambient is not None and ambient.is_open_here else None


def scope_of(root: Container) -> Container | None:
    """Return the scoped container that is open in this context and counts for ``root``, or None."""
    ambient = ambient_scope.get()
    if ambient is None or not ambient.is_open_here or ambient.root not in (None, root):
        return None
    return ambient.container


@contextmanager
def bind_scope(scoped_container: Any) -> Iterator[Container]:
    """Have handlers resolve from a scope that somebody else opened (a web framework, for its request).

    It counts for this thread; event handlers on pool threads resolve from the mediator's own container.

    Args:
        scoped_container: a container of any kind that ``bootstrap`` takes.
    """
    container = as_container(scoped_container)
    token = ambient_scope.set(Ambient(container, None, threading.get_ident()))
    try:
        yield container
    finally:
        ambient_scope.reset(token)


@contextmanager
def enter_scope(
    container: Container, *, context: Mapping[type, Any] | None = None, reuse_existing: bool = True
) -> Iterator[Container]:
    """Open a scope of the container for the duration of the block.

    Args:
        context: objects that exist in this scope only.
        reuse_existing: join the scope that is open here, if there is one.

    Yields:
        the scoped container; ``container`` itself where it has no scopes.
    """
    existing = current_container()
    if existing is not None and reuse_existing:
        yield existing
        return
    root = container.root if isinstance(container, ScopeAwareContainer) else container
    if not isinstance(root, SupportsScope):
        yield container
        return
    with root.open_scope(context=context) as scoped, bind_scope(scoped):
        yield scoped


class ScopeAwareContainer:
    """Resolves from the scope that is open here, else from the container it wraps."""

    def __init__(self, root: Any) -> None:
        self.root = as_container(root)

    def resolve(self, type_: type[T]) -> T:
        """Return an object of this type."""
        return (current_container() or self.root).resolve(type_)
