"""Streams: pieces, their events, their transactions, and what happens when somebody stops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator
from typing import Any

import punq
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import cqrs_sync as cqrs
from cqrs_sync.adapters.circuit_breaker import PyBreakerAdapter
from cqrs_sync.errors import (
    EventHandlingError,
    MediatorClosed,
    RequestHandlerDoesNotExist,
    RequestHandlerTypeError,
    SharedHandlerError,
)
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming, setup_event_emitter, setup_streaming_mediator
from tests.unit.shop import Happened, Told, event_handler
from tests.unit.test_unit_of_work import (
    HANDLER,
    NONE,
    SEND,
    STRATEGIES,
    Counting,
    Records,
    engine,
    names,
    rows,
    uow,
)

__all__ = ("engine", "uow")


class Count(cqrs.Request[int]):
    to: int = 3
    fails_at: int | None = None


class CountHandler(cqrs.StreamingRequestHandler[Count, int]):
    """Yields 1, 2, 3 with an event before each and one after the last; writes down how it ended."""

    ended: list[str] = []

    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: Count) -> Iterator[int]:
        try:
            for number in range(1, request.to + 1):
                self.before(number, request)
                self._events.append(Happened(number=number))
                yield number
            self._events.append(Happened(number=99))
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("end")

    def before(self, number: int, request: Count) -> None:
        if number == request.fails_at:
            raise ConnectionError(number)


class WritingHandler(CountHandler):
    """Writes a row before each piece."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def before(self, number: int, request: Count) -> None:
        self._session.execute(rows.insert().values(name=f"piece-{number}"))
        super().before(number, request)


@pytest.fixture(autouse=True)
def forget_endings() -> None:
    CountHandler.ended.clear()


def streaming(handler: Any = CountHandler, *event_handlers: Any, **options: Any) -> cqrs.StreamingRequestMediator:
    def events(event_map: cqrs.EventMap) -> None:
        for each in event_handlers:
            event_map.bind(Happened, each)

    return bootstrap_streaming(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Count, handler),
        domain_events_mapper=events,
        **options,
    )


@pytest.mark.parametrize("limit", [1, 4])
def test_the_events_of_a_piece_are_handled_before_it_is_handed_out(limit: int) -> None:
    """And those listed after the last piece when the stream ends."""
    seen: list[int] = []
    with streaming(
        CountHandler, event_handler(lambda event: seen.append(event.number)), max_concurrent_event_handlers=limit
    ) as mediator:
        order = [(piece, list(seen)) for piece in mediator.stream(Count())]
    assert order == [(1, [1]), (2, [1, 2]), (3, [1, 2, 3])]
    assert seen == [1, 2, 3, 99]
    assert CountHandler.ended == ["end"]


def test_events_of_a_handler_that_hands_out_copies_are_taken_once() -> None:
    """It need not override clear_events()."""

    class Copies(CountHandler):
        @property
        def events(self) -> list[cqrs.IEvent]:
            return list(self._events)

    seen: list[int] = []
    list(streaming(Copies, event_handler(lambda event: seen.append(event.number))).stream(Count()))
    assert seen == [1, 2, 3, 99]


def test_events_of_a_handler_that_clears_by_itself_are_taken_once() -> None:
    """A new list for each piece, as tuples too."""

    class Fresh(cqrs.StreamingRequestHandler[Count, int]):
        def handle(self, request: Count) -> Iterator[int]:
            for number in range(request.to):
                self.events = (Happened(number=number),)
                yield number

    seen: list[int] = []
    list(streaming(Fresh, event_handler(lambda event: seen.append(event.number))).stream(Count()))
    assert seen == [0, 1, 2]


def test_clear_events_is_called_where_it_is_overridden() -> None:
    """As in the async library."""
    cleared: list[int] = []

    class Clears(CountHandler):
        @property
        def events(self) -> list[cqrs.IEvent]:
            return list(self._events)

        def clear_events(self) -> None:
            cleared.append(len(self._events))
            self._events.clear()

    seen: list[int] = []
    list(streaming(Clears, event_handler(lambda event: seen.append(event.number))).stream(Count()))
    assert seen == [1, 2, 3, 99]
    assert cleared == [1, 1, 1, 1]


def test_stopping_early_closes_the_handlers_generator_at_once() -> None:
    """Its finally blocks run before close() returns."""
    stream = streaming().stream(Count())
    assert next(stream) == 1
    stream.close()
    assert CountHandler.ended == ["GeneratorExit"]


def test_a_stream_that_is_dropped_is_closed_too() -> None:
    """break in a for loop is enough."""
    for _ in streaming().stream(Count()):
        break
    assert CountHandler.ended == ["GeneratorExit"]


def test_a_stream_is_a_generator_and_starts_with_its_first_piece() -> None:
    """Nothing runs before that, but an unknown request is refused at once."""
    mediator = streaming()
    stream = mediator.stream(Count())
    assert isinstance(stream, Generator)
    stream.close()
    assert CountHandler.ended == []

    class Unknown(cqrs.Request[int]):
        pass

    with pytest.raises(RequestHandlerDoesNotExist) as caught:
        mediator.stream(Unknown())
    assert caught.value.message_type is Unknown


def test_what_the_handler_raises_reaches_the_consumer() -> None:
    """After the pieces that came before it."""
    stream = streaming().stream(Count(fails_at=2))
    assert next(stream) == 1
    with pytest.raises(ConnectionError):
        next(stream)
    assert CountHandler.ended == ["ConnectionError"]


@pytest.mark.parametrize("strategy", [NONE, SEND])
def test_a_middleware_sees_one_call_per_stream(strategy: cqrs.ScopeStrategy) -> None:
    """It may pass the iterator on, or put another one around it, and the handler's own is closed either way."""
    calls: list[str] = []

    def doubling(request: Count, handle: Any) -> Any:
        calls.append(type(request).__name__)
        return map((2).__mul__, handle(request))

    mediator = streaming(middlewares=[doubling], scope_strategy=strategy)
    assert list(mediator.stream(Count())) == [2, 4, 6]
    stream = mediator.stream(Count())
    next(stream)
    stream.close()
    assert CountHandler.ended == ["end", "GeneratorExit"]
    assert calls == ["Count", "Count"]


def test_a_middleware_that_answers_a_stream_with_something_else_is_an_error() -> None:
    """It names the handler."""
    with pytest.raises(RequestHandlerTypeError, match="must return an iterator") as caught:
        next(streaming(middlewares=[lambda request, handle: [1, 2]]).stream(Count()))
    assert caught.value.handler_type is CountHandler


def test_the_logging_middleware_does_not_consume_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG it says that the stream has begun."""
    with caplog.at_level(logging.DEBUG, logger="cqrs_sync.middlewares.logging"):
        assert list(streaming().stream(Count())) == [1, 2, 3]
    logged = [record.getMessage() for record in caplog.records if record.name == "cqrs_sync.middlewares.logging"]
    assert logged == ["handling Count", "streaming Count"]


def test_a_stream_without_any_middleware_works() -> None:
    """Hand-wired, as setup_streaming_mediator does it."""
    container = cqrs.DIContainer(punq.Container())
    mediator = setup_streaming_mediator(
        setup_event_emitter(container), container, [], commands_mapper=lambda m: m.bind(Count, CountHandler)
    )
    assert list(mediator.stream(Count())) == [1, 2, 3]


class Fallback(CountHandler):
    def before(self, number: int, request: Count) -> None:
        pass


def test_a_fallback_streams_from_its_start_and_pieces_that_went_out_stay() -> None:
    """p1, f1, f2, f3."""
    fallback = cqrs.RequestHandlerFallback(CountHandler, Fallback, failure_exceptions=(ConnectionError,))
    seen: list[int] = []
    mediator = streaming(fallback, event_handler(lambda event: seen.append(event.number)))
    assert list(mediator.stream(Count(fails_at=2))) == [1, 1, 2, 3]
    assert seen == [1, 1, 2, 3, 99]


def test_an_error_that_is_not_named_does_not_call_for_the_fallback() -> None:
    """failure_exceptions are exact."""
    fallback = cqrs.RequestHandlerFallback(CountHandler, Fallback, failure_exceptions=(KeyError,))
    with pytest.raises(ConnectionError):
        list(streaming(fallback).stream(Count(fails_at=2)))


@STRATEGIES
def test_a_circuit_breaker_counts_failed_streams_and_opens(
    strategy: cqrs.ScopeStrategy, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that always fails after its first piece opens it, and then the fallback answers at once."""
    breaker = PyBreakerAdapter(fail_max=2)
    fallback = cqrs.RequestHandlerFallback(CountHandler, Fallback, circuit_breaker=breaker)
    mediator = streaming(fallback, scope_strategy=strategy)
    with caplog.at_level(logging.DEBUG, logger="cqrs_sync.invocation"):
        answers = [list(mediator.stream(Count(fails_at=2))) for _ in range(3)]
    assert answers == [[1, 1, 2, 3], [1, 1, 2, 3], [1, 2, 3]]
    assert "its circuit is open" in caplog.text


def test_a_consumer_that_stops_early_is_no_failure_for_the_circuit_breaker() -> None:
    """Else impatient consumers would open it."""
    breaker = PyBreakerAdapter(fail_max=1)
    mediator = streaming(cqrs.RequestHandlerFallback(CountHandler, Fallback, circuit_breaker=breaker))
    for _ in range(3):
        stream = mediator.stream(Count())
        next(stream)
        stream.close()
    assert CountHandler.ended == ["GeneratorExit"] * 3
    assert list(mediator.stream(Count())) == [1, 2, 3]


@STRATEGIES
def test_each_piece_is_committed_before_its_events_and_its_consumer_see_it(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """In one session for the stream; what is published follows the commit of its piece."""
    broker = InMemoryMessageBroker()

    class Tells(WritingHandler):
        def before(self, number: int, request: Count) -> None:
            super().before(number, request)
            self._events.append(Told(payload=number))

    mediator = streaming(Tells, message_broker=broker, unit_of_work=uow, scope_strategy=strategy)
    for piece in mediator.stream(Count()):
        assert names(engine) == [f"piece-{n}" for n in range(1, piece + 1)]
        assert [message.payload["payload"] for message in broker.messages] == list(range(1, piece + 1))
    assert len(uow.sessions) == 1


@STRATEGIES
def test_what_was_written_after_the_last_piece_is_committed_at_the_end(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """A stream that ends well leaves nothing out."""

    class Last(WritingHandler):
        def handle(self, request: Count) -> Iterator[int]:
            yield from super().handle(request)
            self._session.execute(rows.insert().values(name="last"))

    list(streaming(Last, unit_of_work=uow, scope_strategy=strategy).stream(Count(to=1)))
    assert names(engine) == ["last", "piece-1"]


@STRATEGIES
@pytest.mark.parametrize("how", ["close", "raise"])
def test_stopping_early_rolls_back_what_no_piece_has_covered(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy, how: str
) -> None:
    """The transaction ends with close(), not with the garbage collector."""

    class Eager(WritingHandler):
        def handle(self, request: Count) -> Iterator[int]:
            yield 1
            try:
                self.before(2, request)
                yield 2
            finally:
                self._session.execute(rows.insert().values(name="finally"))

    mediator = streaming(Eager, unit_of_work=uow, scope_strategy=strategy)
    stream = mediator.stream(Count(fails_at=2 if how == "raise" else None))
    assert next(stream) == 1
    if how == "raise":
        with pytest.raises(ConnectionError):
            next(stream)
    else:
        assert next(stream) == 2
        stream.close()
    assert names(engine) == ([] if how == "raise" else ["piece-2"])
    assert uow.log[-1] == "rollback"
    assert not uow.sessions[0].in_transaction()


def test_send_commits_each_piece_with_its_event_handlers_writes(engine: sa.Engine, uow: Counting) -> None:
    """Events run inside the transaction; one that fails undoes its piece and ends the stream."""
    mediator = streaming(WritingHandler, Records, unit_of_work=uow, scope_strategy=SEND)
    assert list(mediator.stream(Count(to=2))) == [1, 2]
    assert names(engine) == ["event-1", "event-2", "event-99", "piece-1", "piece-2"]
    with engine.begin() as connection:
        connection.execute(rows.delete())

    class Unlucky(WritingHandler):
        def before(self, number: int, request: Count) -> None:
            super().before(number, request)
            if number == 2:
                self._events.append(Happened(number=13))

    stream = streaming(Unlucky, Records, unit_of_work=uow, scope_strategy=SEND).stream(Count())
    assert next(stream) == 1
    with pytest.raises(EventHandlingError):
        next(stream)
    assert names(engine) == ["event-1", "piece-1"]


@STRATEGIES
def test_what_a_failed_primary_stream_wrote_is_not_committed_with_its_fallback(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """Only the pieces that went out stay."""

    class Second(WritingHandler):
        def before(self, number: int, request: Count) -> None:
            self._session.execute(rows.insert().values(name=f"fallback-{number}"))

    binding = cqrs.RequestHandlerFallback(WritingHandler, Second)
    mediator = streaming(binding, unit_of_work=uow, scope_strategy=strategy)
    assert list(mediator.stream(Count(to=2, fails_at=2))) == [1, 1, 2]
    assert names(engine) == ["fallback-1", "fallback-2", "piece-1"]


def test_a_stream_inside_a_send_joins_its_transaction(engine: sa.Engine, uow: Counting) -> None:
    """Its pieces are committed with the send, or not at all."""
    inner = streaming(WritingHandler, Records, unit_of_work=uow, scope_strategy=SEND)

    class Import(cqrs.Request[int]):
        fails: bool

    class ImportHandler(cqrs.RequestHandler[Import]):
        def handle(self, request: Import) -> int:
            total = sum(inner.stream(Count(to=2)))
            if request.fails:
                raise ZeroDivisionError
            return total

    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Import, ImportHandler),
        scope_strategy=SEND,
        unit_of_work=uow,
    )
    with pytest.raises(ZeroDivisionError):
        mediator.send(Import(fails=True))
    assert names(engine) == []
    assert mediator.send(Import(fails=False)) == 3
    assert names(engine) == ["event-1", "event-2", "event-99", "piece-1", "piece-2"]
    assert len(uow.sessions) == 2


def test_the_scope_of_a_stream_does_not_leak_into_its_consumer(engine: sa.Engine, uow: Counting) -> None:
    """Between two pieces the consumer's own sends are its own."""
    streamed = streaming(WritingHandler, unit_of_work=uow, scope_strategy=SEND)
    stream = streamed.stream(Count())
    next(stream)
    with pytest.raises(Exception, match="none is open here"):
        uow.session  # noqa: B018
    assert cqrs.current_container() is None

    class Other(WritingHandler):
        def before(self, number: int, request: Count) -> None:
            self._session.execute(rows.insert().values(name="other"))
            raise ConnectionError

    with pytest.raises(ConnectionError):
        next(streaming(Other, unit_of_work=uow, scope_strategy=SEND).stream(Count()))
    assert names(engine) == ["piece-1"]
    stream.close()
    assert len(uow.sessions) == 2


def test_a_stream_may_be_continued_by_another_thread(engine: sa.Engine, uow: Counting) -> None:
    """One after the other, as a server with worker threads may do."""
    stream = streaming(WritingHandler, Records, unit_of_work=uow, scope_strategy=SEND).stream(Count(to=2))
    pieces: list[int] = [next(stream)]
    thread = threading.Thread(target=lambda: pieces.extend(stream))
    thread.start()
    thread.join()
    assert pieces == [1, 2]
    assert len(uow.sessions) == 1


def test_isolated_errors_of_a_pieces_events_leave_the_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    """And raised ones end it, with the piece on the error."""

    def fail(event: Happened) -> None:
        if event.number == 2:
            raise ValueError("no")

    assert list(streaming(CountHandler, event_handler(fail)).stream(Count())) == [1, 2, 3]
    assert "ValueError" in caplog.text
    stream = streaming(CountHandler, event_handler(fail), event_errors="raise").stream(Count())
    assert next(stream) == 1
    with pytest.raises(EventHandlingError) as caught:
        next(stream)
    assert caught.value.response == 2
    assert CountHandler.ended == ["end", "GeneratorExit"]


def test_a_closed_mediator_refuses_streams() -> None:
    """At the call."""
    mediator = streaming()
    mediator.close()
    with pytest.raises(MediatorClosed, match="StreamingRequestMediator was closed"):
        mediator.stream(Count())


class NotAGenerator(cqrs.StreamingRequestHandler[Count, int]):
    def handle(self, request: Count) -> Iterator[int]:
        return iter([1])


class AnswersAtOnce(cqrs.RequestHandler[Count, int]):
    def handle(self, request: Count) -> int:
        return 1


class Link(cqrs.CORRequestHandler[Count, int]):
    def handle(self, request: Count) -> int:
        return 1


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (NotAGenerator, "NotAGenerator.handle must be a generator function"),
        (AnswersAtOnce, "AnswersAtOnce answers at once"),
        ([Link], "a chain of responsibility cannot stream"),
        (cqrs.RequestHandlerFallback(AnswersAtOnce, AnswersAtOnce), "AnswersAtOnce answers at once"),
    ],
)
def test_a_handler_that_does_not_stream_is_refused_by_bootstrap(handler: Any, text: str) -> None:
    """With the class's name and what to do."""
    with pytest.raises(RequestHandlerTypeError, match=text):
        streaming(handler)


def test_a_streaming_handler_is_refused_by_the_request_mediator() -> None:
    """It says which bootstrap is the right one."""
    with pytest.raises(RequestHandlerTypeError, match="bind it with bootstrap_streaming"):
        bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Count, CountHandler))


def test_a_singleton_streaming_handler_is_refused() -> None:
    """Its events would leak between streams."""
    container = punq.Container()
    container.register(CountHandler, scope=punq.Scope.singleton)
    with pytest.raises(SharedHandlerError, match="CountHandler is a singleton"):
        bootstrap_streaming(container, commands_mapper=lambda m: m.bind(Count, CountHandler))


@pytest.mark.parametrize("strategy", [HANDLER, SEND])
def test_concurrent_streams_have_sessions_of_their_own(tmp_path: Any, strategy: cqrs.ScopeStrategy) -> None:
    """Two streams drawn in turn by one thread do not mix."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}")
    from tests.unit.test_unit_of_work import metadata

    metadata.create_all(engine)
    uow = Counting(engine)

    class Named(WritingHandler):
        def before(self, number: int, request: Count) -> None:
            self._session.execute(rows.insert().values(name=f"{request.to}-{number}"))

    mediator = streaming(Named, unit_of_work=uow, scope_strategy=strategy)
    one, two = mediator.stream(Count(to=2)), mediator.stream(Count(to=3))
    assert [next(one), next(two), next(one), next(two), next(two)] == [1, 1, 2, 2, 3]
    assert [next(one, None), next(two, None)] == [None, None]
    assert len(uow.sessions) == 2
    assert len(names(engine)) == 5
    engine.dispose()


@STRATEGIES
def test_a_primary_stream_that_succeeds_needs_no_fallback(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """Its pieces are committed as without one, and stopping early undoes the last."""
    mediator = streaming(
        cqrs.RequestHandlerFallback(WritingHandler, WritingHandler), unit_of_work=uow, scope_strategy=strategy
    )
    assert list(mediator.stream(Count(to=2))) == [1, 2]
    assert names(engine) == ["piece-1", "piece-2"]
    with engine.begin() as connection:
        connection.execute(rows.delete())
    stream = mediator.stream(Count(to=2))
    next(stream)
    stream.close()
    assert names(engine) == ["piece-1"]
    assert CountHandler.ended == ["end", "GeneratorExit"]


def test_a_stream_whose_handler_asks_for_no_session_opens_none(uow: Counting) -> None:
    """Nothing is there to commit."""
    assert list(streaming(CountHandler, unit_of_work=uow).stream(Count())) == [1, 2, 3]
    assert uow.sessions == []
