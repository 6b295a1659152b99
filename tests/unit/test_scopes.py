"""Container scopes, opaque containers, and handlers that must not be shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import SharedHandlerError
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.unit_of_work.memory import MemoryUnitOfWork
from tests.unit.shop import Do, DoHandler, Happened, event_handler, mediator_for


class Scoped:
    """A container with scopes that writes down when they open and close."""

    def __init__(self, log: list[str], name: str = "root", parent: Scoped | None = None) -> None:
        self.log = log
        self.name = name
        self.count = 0
        self.parent = parent

    def resolve(self, type_: Any) -> Any:
        built = type_()
        built.scope = self.name
        return built

    @contextmanager
    def open_scope(self, context: Mapping[type, Any] | None = None) -> Iterator[Scoped]:
        self.count += 1
        name = f"{self.name}.{self.count}"
        self.log.append(f"open {name}")
        try:
            yield Scoped(self.log, name, self)
        except BaseException as error:
            self.log.append(f"failed {name}: {type(error).__name__}")
            raise
        self.log.append(f"close {name}")


seen: list[str] = []


class Look(DoHandler):
    scope = "none"

    def handle(self, request: Do) -> str:
        seen.append(self.scope)
        if request.answer == "fail":
            raise ZeroDivisionError
        return super().handle(request)


class Reacts(cqrs.EventHandler[Happened]):
    scope = "none"

    def handle(self, event: Happened) -> None:
        seen.append(self.scope)


@pytest.fixture(autouse=True)
def forget() -> None:
    seen.clear()


def scoped_mediator(container: Any, strategy: cqrs.ScopeStrategy, **options: Any) -> cqrs.RequestMediator:
    handler = options.pop("handler", Look)
    return bootstrap(
        container,
        commands_mapper=lambda m: m.bind(Do, handler),
        domain_events_mapper=lambda m: m.bind(Happened, Reacts),
        scope_strategy=strategy,
        **options,
    )


@pytest.mark.parametrize(
    ("strategy", "expected", "logged"),
    [
        (cqrs.ScopeStrategy.NONE, ["root", "root"], []),
        (cqrs.ScopeStrategy.SEND, ["root.1", "root.1"], ["open root.1", "close root.1"]),
        (
            cqrs.ScopeStrategy.HANDLER,
            ["root.1", "root.2"],
            ["open root.1", "close root.1", "open root.2", "close root.2"],
        ),
    ],
)
def test_the_strategy_says_what_shares_a_scope(
    strategy: cqrs.ScopeStrategy, expected: list[str], logged: list[str]
) -> None:
    """None, one per send, or one per handler."""
    log: list[str] = []
    scoped_mediator(Scoped(log), strategy).send(Do(emits=[Happened()]))
    assert seen == expected
    assert log == logged
    assert cqrs.current_container() is None


@pytest.mark.parametrize("strategy", [cqrs.ScopeStrategy.SEND, cqrs.ScopeStrategy.HANDLER])
def test_a_failing_handler_is_seen_by_its_scope(strategy: cqrs.ScopeStrategy) -> None:
    """So that what the scope holds can roll back."""
    log: list[str] = []
    with pytest.raises(ZeroDivisionError):
        scoped_mediator(Scoped(log), strategy).send(Do(answer="fail"))
    assert log == ["open root.1", "failed root.1: ZeroDivisionError"]


def test_a_commit_that_fails_is_seen_by_the_containers_scope() -> None:
    """The unit of work ends before the scope around it."""

    class Broken(MemoryUnitOfWork):
        def apply(self, written: Mapping[Any, Any]) -> None:
            raise OSError("disk full")

    uow = Broken()

    class Begins(Look):
        def handle(self, request: Do) -> str:
            uow.transaction()
            return super().handle(request)

    log: list[str] = []
    with pytest.raises(OSError, match="disk full"):
        scoped_mediator(Scoped(log), cqrs.ScopeStrategy.SEND, handler=Begins, unit_of_work=uow).send(Do())
    assert log == ["open root.1", "failed root.1: OSError"]


def test_nested_sends_join_the_scope_of_the_outer_one() -> None:
    """One scope for the whole tree of sends."""
    log: list[str] = []
    mediators: list[cqrs.RequestMediator] = []

    class Sends(Look):
        def handle(self, request: Do) -> str:
            if request.answer == "outer":
                mediators[0].send(Do())
            return super().handle(request)

    mediators.append(scoped_mediator(Scoped(log), cqrs.ScopeStrategy.SEND, handler=Sends))
    mediators[0].send(Do(answer="outer"))
    assert seen == ["root.1", "root.1"]
    assert log == ["open root.1", "close root.1"]


def test_a_nested_mediator_with_another_container_has_scopes_of_its_own() -> None:
    """It resolves from its own container, in the shared unit of work if they have one."""
    log: list[str] = []
    uow = MemoryUnitOfWork()
    inner = scoped_mediator(Scoped(log, "inner"), cqrs.ScopeStrategy.SEND, unit_of_work=uow)
    unscoped = scoped_mediator(Scoped(log, "unscoped"), cqrs.ScopeStrategy.NONE)

    class Sends(Look):
        def handle(self, request: Do) -> str:
            uow.transaction()["outer"] = 1
            inner.send(Do())
            unscoped.send(Do())
            return super().handle(request)

    scoped_mediator(Scoped(log, "outer"), cqrs.ScopeStrategy.SEND, handler=Sends, unit_of_work=uow).send(Do())
    assert seen == ["inner.1", "unscoped", "outer.1"]
    assert log == ["open outer.1", "open inner.1", "close inner.1", "close outer.1"]
    assert uow.commits == 1


def test_handlers_resolve_from_a_scope_that_somebody_else_opened() -> None:
    """bind_scope: a web framework's request scope, for every strategy that does not open its own."""
    log: list[str] = []
    root = Scoped(log)
    for strategy in (cqrs.ScopeStrategy.NONE, cqrs.ScopeStrategy.SEND):
        with root.open_scope() as request_scope, cqrs.bind_scope(request_scope) as bound:
            assert cqrs.current_container() is bound is request_scope
            scoped_mediator(root, strategy).send(Do(emits=[Happened()]))
    assert seen == ["root.1", "root.1", "root.2", "root.2"]
    assert log == ["open root.1", "close root.1", "open root.2", "close root.2"]


def test_a_punq_child_can_be_the_scope_of_a_request() -> None:
    """Its instances are injected into handlers that were never registered."""

    class User:
        pass

    class Knows(DoHandler):
        def __init__(self, user: User) -> None:
            super().__init__()
            self.user = user

        def handle(self, request: Do) -> str:
            return type(self.user).__name__

    class Admin(User):
        pass

    Knows.__init__.__annotations__["user"] = User
    root = punq.Container()
    root.register(User)
    mediator = bootstrap(root, commands_mapper=lambda m: m.bind(Do, Knows))
    child = root.child()
    child.register(User, instance=Admin())
    with cqrs.bind_scope(child):
        assert mediator.send(Do()) == "Admin"
    assert mediator.send(Do()) == "User"


def test_enter_scope_joins_or_opens() -> None:
    """And yields the container itself where it has no scopes."""
    log: list[str] = []
    root = Scoped(log)
    aware = cqrs.ScopeAwareContainer(root)
    with cqrs.enter_scope(aware) as outer:
        assert aware.resolve(Reacts).scope == "root.1"
        with cqrs.enter_scope(root) as inner:
            assert inner is outer
        with cqrs.enter_scope(root, reuse_existing=False) as fresh:
            assert fresh is not outer
    assert aware.resolve(Reacts).scope == "root"
    plain = cqrs.PunqContainer(punq.Container())
    with cqrs.enter_scope(plain) as same:
        assert same is plain
    assert log == ["open root.1", "open root.2", "close root.2", "close root.1"]
    scoped_mediator(aware, cqrs.ScopeStrategy.SEND).send(Do())
    assert seen == ["root.3"]


def test_an_event_mediator_opens_the_scopes_of_its_strategy() -> None:
    """As the other mediators do."""
    log: list[str] = []
    mediator = bootstrap_events(
        Scoped(log), events_mapper=lambda m: m.bind(Happened, Reacts), scope_strategy=cqrs.ScopeStrategy.SEND
    )
    mediator.send(Happened())
    assert seen == ["root.1"]


class Link(cqrs.CORRequestHandler[Do, str]):
    def handle(self, request: Do) -> str | None:
        return self.next(request)


@pytest.mark.parametrize("handler", [DoHandler, [Link]])
@pytest.mark.parametrize("how", ["singleton", "instance"])
def test_a_shared_handler_with_state_is_refused_by_bootstrap(handler: Any, how: str) -> None:
    """Events, or a place in a chain."""
    container = punq.Container()
    cls = Link if isinstance(handler, list) else handler
    if how == "singleton":
        container.register(cls, scope=punq.Scope.singleton)
    else:
        container.register(cls, instance=cls())
    with pytest.raises(SharedHandlerError, match="register it as transient") as caught:
        bootstrap(container, commands_mapper=lambda m: m.bind(Do, handler))
    assert caught.value.handler_type is cls


def test_a_shared_event_handler_with_state_is_refused_by_bootstrap() -> None:
    """Event handlers emit too."""

    class Emits(cqrs.EventHandler[Happened]):
        @property
        def events(self) -> list[cqrs.IEvent]:
            return []

        def handle(self, event: Happened) -> None: ...

    container = punq.Container()
    container.register(Emits, scope=punq.Scope.singleton)
    with pytest.raises(SharedHandlerError, match="Emits"):
        mediator_for(Emits, di_container=container)


def test_a_shared_handler_without_state_is_welcome_until_it_emits() -> None:
    """Nobody can see beforehand that it will assign self.events."""

    class Quiet(cqrs.RequestHandler[Do]):
        def handle(self, request: Do) -> str:
            if request.answer == "emit":
                self.events = [Happened()]
            return str(id(self))

    container = punq.Container()
    container.register(Quiet, scope=punq.Scope.singleton)
    mediator = bootstrap(container, commands_mapper=lambda m: m.bind(Do, Quiet))
    assert mediator.send(Do()) == mediator.send(Do())
    with pytest.raises(SharedHandlerError, match="Quiet"):
        mediator.send(Do(answer="emit"))


def test_an_opaque_container_that_hands_a_handler_out_twice_is_found_out() -> None:
    """Where nobody can ask it beforehand."""

    class Same:
        def __init__(self) -> None:
            self.handler = DoHandler()

        def resolve(self, type_: Any) -> Any:
            return self.handler if type_ is DoHandler else type_()

    mediator = bootstrap(
        Same(),
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda event: None)),
    )
    assert mediator.send(Do()) == "done"
    with pytest.raises(SharedHandlerError):
        mediator.send(Do())


def test_an_adapter_builds_classes_with_defaults_and_refuses_what_is_no_class() -> None:
    """What all adapters share, whatever container is behind."""
    from dependency_injector import containers

    from cqrs_sync.container.dependency_injector import DependencyInjectorCQRSContainer
    from cqrs_sync.errors import UnresolvableDependency

    class Sized:
        def __init__(self, size=3, *, name: str = "x") -> None:  # type: ignore[no-untyped-def]
            self.size, self.name = size, name

    adapter = DependencyInjectorCQRSContainer(containers.DynamicContainer())
    assert (adapter.resolve(Sized).size, adapter.resolve(Sized).name) == (3, "x")
    assert adapter.knows(Sized) is False
    with pytest.raises(UnresolvableDependency, match="is not registered"):
        adapter.plan("unknown", {})
