"""Dispatches requests to handlers that answer piece by piece."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from typing import Any, TypeAlias, cast

from cqrs_sync.circuit_breaker import should_use_fallback
from cqrs_sync.dispatcher.base import MapDispatcher
from cqrs_sync.dispatcher.models import RequestDispatchResult
from cqrs_sync.errors import RequestHandlerTypeError, type_name
from cqrs_sync.events.emits_events import events_of
from cqrs_sync.invocation import Events, HandlerFactory, Stage, log_fallback
from cqrs_sync.middlewares.base import Layer, compose
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.requests.request import IRequest
from cqrs_sync.requests.request_handler import StreamingRequestHandler
from cqrs_sync.scoping import OpenScope

Results: TypeAlias = Generator[RequestDispatchResult, None, None]
Stream: TypeAlias = Callable[[IRequest[Any]], Results]


class StreamingRequestDispatcher(MapDispatcher[Stream]):
    """Calls the streaming handler bound for a request; the middlewares see one call per stream. Thread-safe.

    The arguments are those of :class:`~cqrs_sync.dispatcher.base.MapDispatcher`.
    """

    def dispatch(self, request: IRequest[Any]) -> Results:
        """Return an iterator of the pieces, each with the events that go with it; nothing runs before it is used.

        Raises:
            RequestHandlerDoesNotExist: nothing is bound for exactly this class.
        """
        return self.calls[type(request)](request)

    @functools.cached_property
    def _chain(self) -> Layer | None:
        return compose(self._layers)

    def _compile(self, binding: Any) -> Stream:
        if isinstance(binding, RequestHandlerFallback):
            return self._with_fallback(binding)
        _check_streams(binding)
        build = HandlerFactory(self.scoping, binding)
        stage = build.stage(self._stage)

        def stream(request: IRequest[Any]) -> Results:
            return self._pieces(request, build, stage)

        return stream

    def _pieces(self, request: IRequest[Any], build: HandlerFactory, stage: Stage) -> Results:
        """Stream one handler, in a scope of its own where the strategy asks for one."""
        pieces = self._run(request, build, stage)
        if self.scoping.per_handler:
            pieces = in_scope(self.scoping.open(), pieces)
        yield from pieces

    def _run(self, request: IRequest[Any], build: HandlerFactory, stage: Stage) -> Results:
        with ExitStack() as opened:
            taken = _Taken(stage)

            def handle(request: IRequest[Any]) -> Iterator[Any]:
                handler: StreamingRequestHandler[Any, Any] = build()
                taken.by(handler)
                generator: Any = handler.handle(request)
                opened.callback(generator.close)
                return cast(Iterator[Any], generator)

            pieces = handle(request) if self._chain is None else self._chain(request, handle)
            if not isinstance(pieces, Iterator):
                raise RequestHandlerTypeError(
                    f"the stream of {type_name(build.handler_type)} became a {type(pieces).__name__} in a middleware; "
                    "a middleware around a stream must return an iterator",
                    build.handler_type,
                )
            close: Callable[[], None] | None = getattr(pieces, "close", None)
            if close is not None:
                opened.callback(close)
            for piece in pieces:
                yield RequestDispatchResult(piece, taken.new_events())
            events = taken.new_events()
        if events:
            yield RequestDispatchResult(None, events, has_response=False)

    def _with_fallback(self, binding: RequestHandlerFallback) -> Stream:
        breaker = binding.circuit_breaker
        primary, fallback = self._compile(binding.primary), self._compile(binding.fallback)

        # A generator function: a circuit breaker then counts the stream when it ends, not when it is made.
        def attempt(request: IRequest[Any]) -> Results:
            scope = self.scoping.open_send() if self.scoping.shared else None
            pieces = primary(request)
            yield from pieces if scope is None else _undone_alone(scope, pieces)

        def stream(request: IRequest[Any]) -> Results:
            try:
                yield from attempt(request) if breaker is None else breaker.call(binding.primary, attempt, request)
            except Exception as error:
                if not should_use_fallback(error, breaker, binding.failure_exceptions):
                    raise
                log_fallback(binding, error)
                yield from fallback(request)

        return stream


class _Taken:
    """Which of a streaming handler's events were taken over already."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._handler: StreamingRequestHandler[Any, Any] | None = None
        self._before: tuple[Any, ...] = ()

    def by(self, handler: StreamingRequestHandler[Any, Any]) -> None:
        """Take from this handler from now on; what an earlier one still lists is dropped with it."""
        self._handler = handler
        self._before = ()

    def new_events(self) -> Events:
        """Take what was listed since the last piece, whether or not the handler forgets what was taken."""
        if self._handler is None:  # a middleware that answers by itself
            return ()
        listed = tuple(events_of(self._handler))
        if not listed and not self._before:
            return ()
        known = 0
        for old, now in zip(self._before, listed, strict=False):
            if old is not now:
                break
            known += 1
        self._handler.clear_events()
        self._before = tuple(events_of(self._handler))
        new = listed[known:]
        return self._stage(new) if new else ()


def in_scope(scope: OpenScope, pieces: Results, also: Callable[[RequestDispatchResult], None] | None = None) -> Results:
    """Draw pieces inside a scope, commit each before it is passed on, and close the scope at the end.

    Args:
        also: what to do with a piece inside the scope, before the commit.
    """
    try:
        while True:
            with scope.active():
                result = next(pieces, None)
                if result is not None and also is not None:
                    also(result)
            if result is None:
                break
            scope.commit()
            yield result
    except BaseException:
        try:
            with scope.active():
                pieces.close()
        finally:
            scope.close(failed=True)
        raise
    scope.close(failed=False)


def _undone_alone(scope: OpenScope, pieces: Results) -> Results:
    """Draw pieces so that what a failed one wrote is not committed with the fallback's writes."""
    with closing(pieces):
        while True:
            with scope.undone_alone():
                result = next(pieces, None)
            if result is None:
                return
            yield result


def _check_streams(handler: Any) -> None:
    if not isinstance(handler, type):
        raise RequestHandlerTypeError("a chain of responsibility cannot stream; bind it with bootstrap()", handler)
    if not issubclass(handler, StreamingRequestHandler):
        raise RequestHandlerTypeError(
            f"{type_name(handler)} answers at once: derive it from StreamingRequestHandler or bind it with bootstrap()",
            handler,
        )
    if not inspect.isgeneratorfunction(handler.handle):
        raise RequestHandlerTypeError(
            f"{type_name(handler)}.handle must be a generator function: yield the pieces of the answer", handler
        )
