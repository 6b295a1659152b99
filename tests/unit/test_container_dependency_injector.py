"""dependency-injector's providers are found by type, and handlers built from them."""

import abc
import collections
import importlib
import sys
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import pytest
from dependency_injector import containers, providers, resources

import cqrs_sync as cqrs
from cqrs_sync.container.dependency_injector import DependencyInjectorCQRSContainer
from cqrs_sync.container.protocol import Container, SupportsPlans, SupportsScope, as_container
from cqrs_sync.errors import ConfigurationError, NotInstalled, SharedHandlerError, UnresolvableDependency
from cqrs_sync.requests.bootstrap import bootstrap


class Database:
    def __init__(self, dsn: str = "memory") -> None:
        self.dsn = dsn


class Repository(abc.ABC):
    @abc.abstractmethod
    def save(self) -> None: ...


class SqlRepository(Repository):
    def __init__(self, database: Database) -> None:
        self.database = database

    def save(self) -> None: ...


class MemoryRepository(Repository):
    def save(self) -> None: ...


class Clock(Protocol):
    zone: str

    def now(self) -> int: ...


class FixedClock(Clock):
    zone = "UTC"

    def now(self) -> int:
        return 1


class Service:
    def __init__(self, repository: Repository, database: Database, retries: int = 3, *, clock: Clock) -> None:
        self.repository = repository
        self.database = database
        self.retries = retries
        self.clock = clock


class Gateways(containers.DeclarativeContainer):
    database = providers.Singleton(Database)


class Application(containers.DeclarativeContainer):
    config = providers.Configuration()
    gateways = providers.Container(Gateways)
    repository = providers.Factory(SqlRepository, database=gateways.database)
    clock = providers.Object(FixedClock())


@pytest.fixture
def application() -> Any:
    return Application()


@pytest.fixture
def container(application: Any) -> DependencyInjectorCQRSContainer:
    return DependencyInjectorCQRSContainer(application)


def adapter(**named: Any) -> DependencyInjectorCQRSContainer:
    foreign = containers.DynamicContainer()
    for name, provider in named.items():
        setattr(foreign, name, provider)
    return DependencyInjectorCQRSContainer(foreign)


class TestResolving:
    def test_registered_class_comes_from_its_provider(self, container: Any) -> None:
        first, second = container.resolve(SqlRepository), container.resolve(SqlRepository)
        assert type(first) is SqlRepository
        assert first is not second
        assert first.database is second.database

    def test_nested_container_is_searched(self, container: Any, application: Any) -> None:
        assert container.resolve(Database) is application.gateways.database()

    def test_base_class_is_provided_by_its_only_subclass(self, container: Any) -> None:
        assert type(container.resolve(Repository)) is SqlRepository

    def test_protocol_is_provided_by_a_class_that_derives_from_it(self, container: Any) -> None:
        assert type(container.resolve(Clock)) is FixedClock

    def test_class_that_was_never_registered_is_built_from_what_is(self, container: Any) -> None:
        service = container.resolve(Service)
        assert type(service.repository) is SqlRepository
        assert service.database is service.repository.database
        assert service.retries == 3
        assert service.clock.now() == 1

    def test_exact_class_wins_over_a_subclass(self) -> None:
        class Replica(Database):
            pass

        assert type(adapter(a=providers.Factory(Replica), b=providers.Factory(Database)).resolve(Database)) is Database

    def test_two_subclasses_are_an_error_that_names_both(self) -> None:
        both: Any = adapter(
            memory=providers.Factory(MemoryRepository), sql=providers.Factory(SqlRepository, providers.Object(1))
        )
        with pytest.raises(UnresolvableDependency, match=r"memory \(MemoryRepository\), sql \(SqlRepository\)"):
            both.resolve(Repository)

    def test_ambiguous_parameter_is_named_with_its_owner(self) -> None:
        both = adapter(one=providers.Factory(Database), two=providers.Factory(Database))
        with pytest.raises(UnresolvableDependency, match=r"one \(Database\), two \(Database\)") as caught:
            both.resolve(SqlRepository)
        assert (caught.value.owner, caught.value.parameter) == (SqlRepository, "database")

    def test_missing_parameter_is_named_with_its_owner(self) -> None:
        with pytest.raises(UnresolvableDependency) as caught:
            adapter().resolve(SqlRepository)
        assert (caught.value.owner, caught.value.parameter) == (SqlRepository, "database")

    def test_services_of_a_unit_of_work_come_first(self, container: Any) -> None:
        mine = Database("mine")
        plan = container.plan(SqlRepository, {Database: lambda: mine})
        assert plan.build().database is not mine  # registered: its provider decides

        class Handler:
            def __init__(self, database: Database) -> None:
                self.database = database

        assert container.plan(Handler, {Database: lambda: mine}).build().database is mine

    def test_builtin_types_and_object_are_never_found_by_type(self) -> None:
        class Named:
            def __init__(self, name: str = "default", anything: object = None) -> None:
                self.name, self.anything = name, anything

        def dsn() -> str:
            return "dsn"

        named = adapter(dsn=providers.Callable(dsn), text=providers.Object("text"), db=providers.Object(Database()))
        assert named.resolve(Named).name == "default"
        assert named.resolve(Named).anything is None

    def test_generic_annotation_is_found_as_written(self) -> None:
        def make() -> collections.ChainMap[str, int]:
            return collections.ChainMap()

        class Uses:
            def __init__(self, settings: collections.ChainMap[str, int]) -> None:
                self.settings = settings

        assert adapter(settings=providers.Singleton(make)).resolve(Uses).settings == {}


def make_database() -> Database:
    return Database("made")


def yield_database() -> Iterator[Database]:
    yield Database("yielded")


def generate_database() -> Generator[Database, None, None]:
    yield Database("generated")


async def await_database() -> Database:
    return Database("awaited")


def unannotated():  # type: ignore[no-untyped-def]
    return Database("unannotated")


def unreadable() -> "Unknown":  # type: ignore[name-defined]  # noqa: F821
    return Database("unreadable")


class DatabaseResource(resources.Resource[Database]):
    def init(self) -> Database:
        return Database("resource")

    def shutdown(self, resource: Database | None) -> None:
        pass


class TestWhatAProviderIsFoundBy:
    @pytest.mark.parametrize(
        ("provider", "dsn"),
        [
            (providers.Factory(Database, "class"), "class"),
            (providers.Factory(make_database), "made"),
            (providers.Callable(make_database), "made"),
            (providers.Singleton(Database, "single"), "single"),
            (providers.ThreadSafeSingleton(Database, "safe"), "safe"),
            (providers.ThreadLocalSingleton(Database, "local"), "local"),
            (providers.Object(Database("object")), "object"),
            (providers.Resource(Database, "plain"), "plain"),
            (providers.Resource(make_database), "made"),
            (providers.Resource(yield_database), "yielded"),
            (providers.Resource(generate_database), "generated"),
            (providers.Resource(DatabaseResource), "resource"),
            (providers.Dependency(Database, default=providers.Object(Database("fallback"))), "fallback"),
            (providers.Factory(f"{__name__}.Database", "by name"), "by name"),
        ],
        ids=str,
    )
    def test_its_class_or_the_annotation_of_its_function(self, provider: Any, dsn: str) -> None:
        assert adapter(database=provider).resolve(Database).dsn == dsn

    @pytest.mark.parametrize(
        "provider",
        [
            providers.Callable(unannotated),
            providers.Callable(unreadable),
            providers.Factory(await_database),
            providers.Coroutine(await_database),
            providers.Object(Database),
            providers.Dependency(),
            providers.List(providers.Factory(Database)),
            providers.Factory(providers.Factory(Database).provider),
        ],
        ids=str,
    )
    def test_nothing_where_that_cannot_be_told(self, provider: Any) -> None:
        with pytest.raises(UnresolvableDependency, match="Database is not registered"):
            adapter(database=provider).resolve(SqlRepository)

    def test_one_provider_under_two_names_is_no_ambiguity(self) -> None:
        database = providers.Singleton(Database)
        assert adapter(one=database, two=database).resolve(Database) is database()

    def test_dependency_stands_back_behind_the_provider_it_stands_for(self) -> None:
        class Services(containers.DeclarativeContainer):
            database = providers.Dependency(instance_of=Database)
            gateways = providers.DependenciesContainer()
            repository = providers.Factory(SqlRepository, database)

        class Root(containers.DeclarativeContainer):
            database = providers.Singleton(Database)
            services = providers.Container(Services, database=database)

        root = Root()
        container = DependencyInjectorCQRSContainer(root)
        assert container.resolve(Database) is root.database()
        assert container.resolve(SqlRepository).database is root.database()


class TestOverriding:
    def test_override_is_honoured_by_plans_that_exist(self, container: Any, application: Any) -> None:
        plan = container.plan(Service, {})
        assert type(plan.build().repository) is SqlRepository
        with application.repository.override(providers.Factory(MemoryRepository)):
            assert type(plan.build().repository) is MemoryRepository
        assert type(plan.build().repository) is SqlRepository

    def test_override_in_a_nested_container_is_honoured(self, container: Any, application: Any) -> None:
        class Fake(containers.DeclarativeContainer):
            database = providers.Object(Database("fake"))

        plan = container.plan(Service, {})
        application.gateways.override(Fake())
        assert plan.build().database.dsn == "fake"

    def test_replaced_provider_is_honoured(self, container: Any, application: Any) -> None:
        plan = container.plan(Service, {})
        application.repository = providers.Factory(MemoryRepository)
        assert type(plan.build().repository) is MemoryRepository

    def test_added_provider_is_found_after_attaching_again(self, container: Any, application: Any) -> None:
        class Late:
            def __init__(self, repository: MemoryRepository) -> None:
                self.repository = repository

        with pytest.raises(UnresolvableDependency):
            container.resolve(Late)
        application.memory = providers.Singleton(MemoryRepository)
        container.attach_external_container(application)
        assert container.resolve(Late).repository is application.memory()


class TestSharing:
    @pytest.mark.parametrize(
        ("provider", "shared"),
        [
            (providers.Factory(Database), False),
            (providers.Callable(make_database), False),
            (providers.Singleton(Database), True),
            (providers.ThreadSafeSingleton(Database), True),
            (providers.ThreadLocalSingleton(Database), True),
            (providers.ContextLocalSingleton(Database), True),
            (providers.Object(Database()), True),
            (providers.Resource(yield_database), True),
            (providers.Dependency(Database, default=providers.Singleton(Database)), True),
            (providers.Dependency(Database, default=providers.Factory(Database)), False),
            (providers.Dependency(Database), False),
        ],
        ids=str,
    )
    def test_what_hands_out_one_object_is_shared(self, provider: Any, shared: bool) -> None:
        assert adapter(database=provider).is_shared(Database) is shared

    def test_override_decides(self, container: Any, application: Any) -> None:
        assert not container.is_shared(Repository)
        with application.repository.override(providers.Singleton(MemoryRepository)):
            assert container.is_shared(Repository)

    def test_what_is_not_registered_is_not_shared(self, container: Any) -> None:
        assert not container.is_shared(Service)


class TestAttaching:
    def test_nothing_attached_is_said(self) -> None:
        empty = DependencyInjectorCQRSContainer()
        for use in (empty.resolve, empty.is_shared):
            with pytest.raises(ConfigurationError, match="attach_external_container"):
                use(Database)

    def test_container_may_be_attached_later_and_exchanged(self, application: Any) -> None:
        container = DependencyInjectorCQRSContainer()
        container.attach_external_container(application)
        assert container.external_container is application
        other = Application()
        container.attach_external_container(other)
        assert container.resolve(Database) is other.gateways.database()

    def test_declarative_class_will_do(self) -> None:
        container: Any = DependencyInjectorCQRSContainer(Application)
        assert type(container.resolve(Repository)) is SqlRepository

    @pytest.mark.parametrize("stranger", [{}, Database, Database()])
    def test_anything_else_is_refused(self, stranger: Any) -> None:
        with pytest.raises(ConfigurationError, match="no container of dependency-injector"):
            DependencyInjectorCQRSContainer().attach_external_container(stranger)

    def test_it_is_a_container_with_plans_and_without_scopes(self, container: Any, application: Any) -> None:
        assert isinstance(container, Container)
        assert isinstance(container, SupportsPlans)
        assert not isinstance(container, SupportsScope)
        assert isinstance(as_container(application), DependencyInjectorCQRSContainer)

    def test_import_without_the_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "dependency_injector", None)
        monkeypatch.delitem(sys.modules, "cqrs_sync.container.dependency_injector")
        with pytest.raises(NotInstalled, match=r"cqrs-sync\[dependency-injector\]"):
            importlib.import_module("cqrs_sync.container.dependency_injector")


class Store(cqrs.Request[str]):
    name: str


class Stored(cqrs.DomainEvent, frozen=True):
    name: str


class StoreHandler(cqrs.RequestHandler[Store, str]):
    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(self, request: Store) -> str:
        self._events.append(Stored(name=request.name))
        return type(self.repository).__name__


class Journal(list[str]):
    pass


class StoredHandler(cqrs.EventHandler[Stored]):
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def handle(self, event: Stored) -> None:
        self.journal.append(event.name)


class TestInAMediator:
    @staticmethod
    def mediator(application: Any) -> cqrs.RequestMediator:
        return bootstrap(
            di_container=application,
            commands_mapper=lambda m: m.bind(Store, StoreHandler),
            domain_events_mapper=lambda m: m.bind(Stored, StoredHandler),
        )

    def test_handlers_get_what_the_container_provides(self, application: Any) -> None:
        application.journal = providers.Singleton(Journal)
        mediator = self.mediator(application)
        assert mediator.send(Store(name="a")) == "SqlRepository"
        with application.repository.override(providers.Factory(MemoryRepository)):
            assert mediator.send(Store(name="b")) == "MemoryRepository"
        assert application.journal() == ["a", "b"]

    def test_missing_dependency_is_an_error_at_start_up(self, application: Any) -> None:
        with pytest.raises(UnresolvableDependency, match="journal") as caught:
            self.mediator(application)
        assert caught.value.owner is StoredHandler

    def test_handler_that_is_a_singleton_is_refused_at_start_up(self, application: Any) -> None:
        application.journal = providers.Singleton(Journal)
        application.handler = providers.Singleton(StoreHandler, application.repository)
        with pytest.raises(SharedHandlerError, match="StoreHandler"):
            self.mediator(application)
