"""dishka's factories are found by type, its scopes opened and closed, and handlers built from both."""

import importlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Generic, TypeVar

import pytest
from dishka import FromComponent, Provider, Scope, make_async_container, make_container

import cqrs_sync as cqrs
from cqrs_sync.container.dishka import DishkaCQRSContainer
from cqrs_sync.container.protocol import Container, SupportsPlans, SupportsScope, as_container
from cqrs_sync.container.scope import ScopeStrategy, bind_scope
from cqrs_sync.errors import ConfigurationError, NotInstalled, SharedHandlerError, UnresolvableDependency
from cqrs_sync.requests.bootstrap import bootstrap

ValueT = TypeVar("ValueT")


class Settings:
    pass


class Session:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closed_with: Any = "open"


class Repository:
    def __init__(self, session: Session) -> None:
        self.session = session


class Tracer:
    pass


class User:
    pass


class Box(Generic[ValueT]):
    def __init__(self, kind: type[ValueT]) -> None:
        self.kind = kind


class Service:
    """Never registered."""

    def __init__(self, settings: Settings, session: Session, retries: int = 3, *, repository: Repository) -> None:
        self.settings = settings
        self.session = session
        self.retries = retries
        self.repository = repository


def open_session(settings: Settings) -> Iterator[Session]:
    session = Session(settings)
    error = yield session  # dishka sends the exception that the scope was left with
    session.closed_with = error


def provider() -> Provider:
    provider = Provider()
    provider.provide(Settings, scope=Scope.APP)
    provider.provide(Tracer, scope=Scope.APP, cache=False)
    provider.provide(open_session, scope=Scope.REQUEST)
    provider.provide(Repository, scope=Scope.REQUEST, cache=False)
    return provider


@pytest.fixture
def container() -> DishkaCQRSContainer:
    return DishkaCQRSContainer(make_container(provider()))


class TestApplicationScope:
    def test_registered_class_comes_from_dishka(self, container: DishkaCQRSContainer) -> None:
        assert container.resolve(Settings) is container.external_container.get(Settings)
        assert container.resolve(Tracer) is not container.resolve(Tracer)

    def test_class_that_was_never_registered_is_built_from_what_is(self, container: DishkaCQRSContainer) -> None:
        class Uses:
            def __init__(self, settings: Settings, retries: int = 3) -> None:
                self.settings, self.retries = settings, retries

        first, second = container.resolve(Uses), container.resolve(Uses)
        assert first is not second
        assert first.settings is second.settings is container.resolve(Settings)
        assert first.retries == 3

    def test_generic_class_is_found_by_its_arguments(self) -> None:
        generic = Provider(scope=Scope.APP)

        def box(kind: type[ValueT]) -> Box[ValueT]:
            return Box(kind)

        generic.provide(box)

        class Uses:
            def __init__(self, users: Box[User]) -> None:
                self.users = users

        assert DishkaCQRSContainer(make_container(generic)).resolve(Uses).users.kind is User

    def test_unknown_parameter_is_named_with_its_owner_and_nothing_is_built(self) -> None:
        built: list[str] = []

        def settings() -> Settings:
            built.append("settings")
            return Settings()

        eager = Provider(scope=Scope.APP)
        eager.provide(settings)

        class Uses:
            def __init__(self, settings: Settings, user: User) -> None: ...

        with pytest.raises(UnresolvableDependency) as caught:
            DishkaCQRSContainer(make_container(eager)).plan(Uses, {})
        assert (caught.value.owner, caught.value.parameter) == (Uses, "user")
        assert built == []

    def test_services_of_a_unit_of_work_come_first(self, container: DishkaCQRSContainer) -> None:
        mine = Session(Settings())

        class Uses:
            def __init__(self, session: Session) -> None:
                self.session = session

        assert container.plan(Uses, {Session: lambda: mine}).build().session is mine

    def test_type_that_is_no_class_and_not_registered_is_refused(self, container: DishkaCQRSContainer) -> None:
        with pytest.raises(UnresolvableDependency, match="not registered"):
            container.plan("Service", {})


class TestInnerScope:
    def test_what_lives_in_a_scope_is_known_but_not_built_outside(self, container: DishkaCQRSContainer) -> None:
        for type_ in (Session, Service):
            plan = container.plan(type_, {})
            with pytest.raises(UnresolvableDependency, match="scope REQUEST and none is open here") as caught:
                plan.build()
            assert caught.value.dependency is Session

    def test_scope_shares_what_it_keeps_and_builds_the_rest(self, container: DishkaCQRSContainer) -> None:
        with container.open_scope() as scoped:
            service, other = scoped.resolve(Service), scoped.resolve(Service)
            assert service is not other
            assert service.session is other.session is scoped.resolve(Session)
            assert service.repository is not other.repository
            assert service.repository.session is service.session
            assert service.settings is container.resolve(Settings)
            assert service.retries == 3

    def test_scopes_share_nothing_but_the_application(self, container: DishkaCQRSContainer) -> None:
        with container.open_scope() as one, container.open_scope() as two:
            assert one is not two
            assert one.resolve(Session) is not two.resolve(Session)
            assert one.resolve(Settings) is two.resolve(Settings)

    def test_leaving_finalizes_with_the_error_it_is_left_with(self, container: DishkaCQRSContainer) -> None:
        with container.open_scope() as scoped:
            session = scoped.resolve(Session)
            assert session.closed_with == "open"
        assert session.closed_with is None

        error = ValueError("left")
        scope = container.open_scope()
        session = scope.__enter__().resolve(Session)
        assert not scope.__exit__(type(error), error, None)
        assert session.closed_with is error

    def test_scope_takes_objects_that_dishka_was_told_of(self) -> None:
        told = Provider(scope=Scope.REQUEST)
        told.from_context(provides=User)
        container = DishkaCQRSContainer(make_container(provider(), told))

        class Uses:
            def __init__(self, user: User) -> None:
                self.user = user

        user = User()
        with container.open_scope(context={User: user}) as scoped:
            assert scoped.resolve(Uses).user is user

    def test_container_of_somebody_else_is_wrapped(self) -> None:
        with make_container(provider())() as request:
            scoped = DishkaCQRSContainer.of(request)
            assert scoped.external_container is request
            assert scoped.resolve(Service).session is request.get(Session)

    def test_container_of_the_outermost_scope_will_do(self) -> None:
        outermost = Provider(scope=Scope.RUNTIME)
        outermost.provide(Settings)
        container = DishkaCQRSContainer(make_container(outermost, start_scope=Scope.RUNTIME))
        assert container.is_shared(Settings)

    def test_scopes_may_be_nested(self, container: DishkaCQRSContainer) -> None:
        with container.open_scope() as request, request.open_scope() as action:
            assert action.resolve(Session) is request.resolve(Session)

    def test_threads_of_one_scope_share_what_it_keeps(self) -> None:
        together = threading.Barrier(4)

        def slow_session() -> Session:
            return Session(Settings())

        slow = Provider(scope=Scope.REQUEST)
        slow.provide(slow_session)
        with DishkaCQRSContainer(make_container(slow)).open_scope() as scoped, ThreadPoolExecutor(4) as pool:

            def resolve() -> Session:
                together.wait(10)
                return scoped.resolve(Session)

            sessions = [done.result(10) for done in [pool.submit(resolve) for _ in range(4)]]
        assert len(set(map(id, sessions))) == 1

    def test_what_dishka_misses_deeper_down_is_told_in_its_words(self) -> None:
        lacking = Provider(scope=Scope.APP)
        lacking.provide(Repository)
        container = DishkaCQRSContainer(make_container(lacking, skip_validation=True))
        with pytest.raises(UnresolvableDependency, match="Session"):
            container.resolve(Repository)


class Kept:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def make_kept(settings: Settings, tracer: Tracer) -> Kept:
    return Kept(settings)


def yield_kept(settings: Settings) -> Iterator[Kept]:
    yield Kept(settings)


def of_component(settings: Annotated[Settings, FromComponent("other")]) -> Kept:
    return Kept(settings)


def by_keyword(*, settings: Settings) -> Kept:
    return Kept(settings)


class TestSharing:
    def container(self, source: Any, **settings: Any) -> DishkaCQRSContainer:
        kept = Provider()
        kept.provide(source, **settings)
        other = Provider(component="other", scope=Scope.APP)
        other.provide(Settings)
        return DishkaCQRSContainer(make_container(provider(), kept, other))

    @pytest.mark.parametrize(
        ("source", "scope", "cache", "shared"),
        [
            (Kept, Scope.APP, True, True),
            (Kept, Scope.APP, False, False),
            (Kept, Scope.REQUEST, True, False),
            (Kept, Scope.REQUEST, False, False),
            (make_kept, Scope.REQUEST, True, False),
            # dishka has to finalize it at the scope's end, so it is built once for the scope.
            (yield_kept, Scope.REQUEST, True, True),
            (yield_kept, Scope.REQUEST, False, False),
        ],
    )
    def test_what_is_kept_for_the_application_is_shared(
        self, source: Any, scope: Scope, cache: bool, shared: bool
    ) -> None:
        assert self.container(source, scope=scope, cache=cache).is_shared(Kept) is shared

    def test_what_is_not_registered_is_not_shared(self, container: DishkaCQRSContainer) -> None:
        assert not container.is_shared(Service)

    @pytest.mark.parametrize("source", [Kept, make_kept, of_component, by_keyword])
    def test_plan_in_a_scope_builds_anew_and_resolve_does_not(self, source: Any) -> None:
        with self.container(source, scope=Scope.REQUEST).open_scope() as scoped:
            plan = scoped.plan(Kept, {})
            assert plan.build() is not plan.build()
            assert plan.build().settings is plan.build().settings
            assert scoped.resolve(Kept) is scoped.resolve(Kept)
            assert scoped.resolve(Kept).settings is plan.build().settings

    @pytest.mark.parametrize(("scope", "shared"), [(Scope.APP, True), (Scope.REQUEST, False)])
    def test_alias_is_as_shared_as_what_it_stands_for(self, scope: Scope, shared: bool) -> None:
        class Base:
            pass

        class Derived(Base):
            pass

        aliased = Provider(scope=scope)
        aliased.provide(Derived)
        aliased.alias(source=Derived, provides=Base)
        container = DishkaCQRSContainer(make_container(aliased))
        assert container.is_shared(Base) is shared
        with container.open_scope() as scoped:
            assert scoped.resolve(Base) is scoped.resolve(Derived)
            assert (scoped.plan(Base, {}).build() is scoped.plan(Base, {}).build()) is shared

    def test_object_given_to_the_container_is_shared(self) -> None:
        given = Provider(scope=Scope.APP)
        given.from_context(provides=Kept)
        kept = Kept(Settings())
        container = DishkaCQRSContainer(make_container(given, context={Kept: kept}))
        assert container.is_shared(Kept)
        assert container.plan(Kept, {}).build() is kept

    def test_plan_of_what_dishka_finalizes_is_kept_for_the_scope(self) -> None:
        with self.container(yield_kept, scope=Scope.REQUEST).open_scope() as scoped:
            plan = scoped.plan(Kept, {})
            assert plan.build() is plan.build()


class TestAttaching:
    def test_nothing_attached_is_said(self) -> None:
        empty = DishkaCQRSContainer()
        for use in (empty.resolve, empty.is_shared):
            with pytest.raises(ConfigurationError, match="attach_external_container"):
                use(Settings)

    def test_container_may_be_attached_later_and_exchanged(self, container: DishkaCQRSContainer) -> None:
        plan = container.plan(Settings, {})
        before = plan.build()
        container.attach_external_container(make_container(provider()))
        assert plan.build() is not before
        assert plan.build() is container.external_container.get(Settings)

    @pytest.mark.parametrize("stranger", [{}, make_async_container(), Settings])
    def test_anything_else_is_refused(self, stranger: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"use make_container\(\.\.\.\)"):
            DishkaCQRSContainer(stranger)

    def test_it_is_a_container_with_plans_and_scopes(self, container: DishkaCQRSContainer) -> None:
        assert isinstance(container, Container)
        assert isinstance(container, SupportsPlans)
        assert isinstance(container, SupportsScope)
        assert isinstance(as_container(container.external_container), DishkaCQRSContainer)

    def test_import_without_the_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "dishka", None)
        monkeypatch.delitem(sys.modules, "cqrs_sync.container.dishka")
        with pytest.raises(NotInstalled, match=r"cqrs-sync\[dishka\]"):
            importlib.import_module("cqrs_sync.container.dishka")


class Store(cqrs.Request[Session]):
    name: str
    again: bool = False


class Stored(cqrs.DomainEvent, frozen=True):
    name: str


class Told(cqrs.DomainEvent, frozen=True):
    name: str


class StoreHandler(cqrs.RequestHandler[Store, Session]):
    def __init__(self, session: Session) -> None:
        self.session = session
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(self, request: Store) -> Session:
        assert self.session.closed_with == "open"
        self._events += [Stored(name=request.name), Stored(name=request.name.upper())]
        return self.session


class Journal:
    def __init__(self) -> None:
        self.entries: list[tuple[str, Any]] = []


class StoredHandler(cqrs.EventHandler[Stored]):
    def __init__(self, session: Session, journal: Journal) -> None:
        self.session, self.journal = session, journal
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(self, event: Stored) -> None:
        self.journal.entries.append((event.name, self.session))
        self._events.append(Told(name=event.name))


class ToldHandler(cqrs.EventHandler[Told]):
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def handle(self, event: Told) -> None:
        self.journal.entries.append((f"told {event.name}", None))


def bind_events(events: cqrs.EventMap) -> None:
    events.bind(Stored, StoredHandler)
    events.bind(Told, ToldHandler)


class TestInAMediator:
    @staticmethod
    def foreign(handler_scope: Scope | None = None) -> Any:
        more = Provider(scope=Scope.APP)
        more.provide(Journal)
        if handler_scope is not None:
            more.provide(StoreHandler, scope=handler_scope)
            more.provide(StoredHandler, scope=handler_scope)
        return make_container(provider(), more)

    @staticmethod
    def mediator(foreign: Any, strategy: ScopeStrategy) -> cqrs.RequestMediator:
        return bootstrap(
            di_container=foreign,
            commands_mapper=lambda m: m.bind(Store, StoreHandler),
            domain_events_mapper=bind_events,
            scope_strategy=strategy,
        )

    @pytest.mark.parametrize("handler_scope", [None, Scope.REQUEST])
    def test_send_has_a_scope_that_its_event_handlers_share(self, handler_scope: Scope | None) -> None:
        foreign = self.foreign(handler_scope)
        session = self.mediator(foreign, ScopeStrategy.SEND).send(Store(name="a"))
        assert session.closed_with is None
        # Each event handler is a new one: no follow-up is told twice.
        assert foreign.get(Journal).entries == [("a", session), ("A", session), ("told a", None), ("told A", None)]

    @pytest.mark.parametrize("handler_scope", [None, Scope.REQUEST])
    def test_each_handler_has_a_scope_of_its_own(self, handler_scope: Scope | None) -> None:
        foreign = self.foreign(handler_scope)
        session = self.mediator(foreign, ScopeStrategy.HANDLER).send(Store(name="a"))
        sessions = [session, *(used for _, used in foreign.get(Journal).entries if used is not None)]
        assert len(set(map(id, sessions))) == 3
        assert [used.closed_with for used in sessions] == [None] * 3

    @pytest.mark.parametrize("handler_scope", [None, Scope.REQUEST])
    def test_scope_of_the_web_framework_is_joined(self, handler_scope: Scope | None) -> None:
        foreign = self.foreign(handler_scope)
        mediator = self.mediator(foreign, ScopeStrategy.SEND)
        with foreign() as request:
            with bind_scope(request):
                sessions = [mediator.send(Store(name=name)) for name in "ab"]
            assert sessions == [request.get(Session)] * 2
            assert sessions[0].closed_with == "open"
        assert sessions[0].closed_with is None
        assert len(foreign.get(Journal).entries) == 8

    def test_without_a_scope_the_error_says_what_to_pass(self) -> None:
        mediator = self.mediator(self.foreign(), ScopeStrategy.NONE)
        with pytest.raises(UnresolvableDependency, match="scope_strategy"):
            mediator.send(Store(name="a"))

    def test_missing_dependency_is_an_error_at_start_up(self) -> None:
        with pytest.raises(UnresolvableDependency, match="journal") as caught:
            self.mediator(make_container(provider()), ScopeStrategy.SEND)
        assert caught.value.owner is StoredHandler

    def test_handler_of_the_application_scope_is_refused_at_start_up(self) -> None:
        more = Provider(scope=Scope.APP)
        more.provide(lambda: StoreHandler(Session(Settings())), provides=StoreHandler)
        more.provide(Journal)
        with pytest.raises(SharedHandlerError, match="StoreHandler"):
            self.mediator(make_container(provider(), more), ScopeStrategy.SEND)
