"""Plans build what punq would build, faster, and see what is registered later."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from typing import Annotated, Any, Generic, Protocol, TypeVar

import punq
import pytest

from cqrs_sync.container.plans import Plan
from cqrs_sync.container.protocol import as_container
from cqrs_sync.container.punq import PunqContainer
from cqrs_sync.errors import ConfigurationError, UnresolvableDependency
from tests.unit.test_event_concurrency import together
from tests.unit.test_executors import WAIT

T = TypeVar("T")


class Clock:
    pass


class Store:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock


class Mailer:
    def __init__(self, clock: Clock, *, sender: str = "shop") -> None:
        self.clock = clock
        self.sender = sender


class Handler:
    def __init__(self, store: Store, mailer: Mailer) -> None:
        self.store = store
        self.mailer = mailer


@pytest.fixture
def foreign() -> punq.Container:
    container = punq.Container()
    for service in (Clock, Store, Mailer):
        container.register(service)
    return container


def built(container: punq.Container, service: Any) -> Any:
    return PunqContainer(container).resolve(service)


def test_an_unregistered_class_is_built_with_its_dependencies(foreign: punq.Container) -> None:
    """As container.instantiate does."""
    handler = built(foreign, Handler)
    assert isinstance(handler, Handler)
    assert isinstance(handler.store.clock, Clock)
    assert handler.mailer.sender == "shop"


def test_a_transient_is_shared_within_one_resolve_and_new_in_the_next(foreign: punq.Container) -> None:
    """punq's diamond."""
    container = PunqContainer(foreign)
    one, two = container.resolve(Handler), container.resolve(Handler)
    assert one.store.clock is one.mailer.clock
    assert one.store.clock is not two.store.clock
    theirs = foreign.instantiate(Handler)
    assert theirs.store.clock is theirs.mailer.clock


def test_a_registered_class_with_a_diamond_shares_too(foreign: punq.Container) -> None:
    """Registered or not makes no difference."""
    foreign.register(Handler)
    handler = built(foreign, Handler)
    assert handler.store.clock is handler.mailer.clock


def test_a_registration_without_cache_is_never_shared() -> None:
    """punq's cache=False."""
    container = punq.Container()
    container.register(Clock, cache=False)
    container.register(Store)
    container.register(Mailer)
    handler = built(container, Handler)
    assert handler.store.clock is not handler.mailer.clock


def test_a_singleton_is_built_once_by_any_number_of_threads(foreign: punq.Container) -> None:
    """And it is the one that punq itself hands out."""
    made: list[int] = []
    start = threading.Barrier(8)

    class Slow:
        def __init__(self) -> None:
            made.append(1)

    foreign.register(Slow, scope=punq.Scope.singleton)
    container = PunqContainer(foreign)
    seen: list[Any] = []

    def resolve(_: int) -> None:
        start.wait(WAIT)
        seen.append(container.resolve(Slow))

    together(8, resolve)
    assert len(made) == 1
    assert {id(each) for each in seen} == {id(foreign.resolve(Slow))}
    assert PunqContainer(foreign).resolve(Slow) is seen[0]


def test_a_singleton_of_a_parent_is_shared_with_its_children(foreign: punq.Container) -> None:
    """Children inherit registrations and what was built."""
    foreign.register(Handler, scope=punq.Scope.singleton)
    child = foreign.child()
    child.register(str, instance="child")
    assert built(child, Handler) is built(foreign, Handler)
    assert built(child, str) == "child"


def test_instances_factories_and_given_arguments(foreign: punq.Container) -> None:
    """The three other ways to register."""
    clock = Clock()
    foreign.register(Clock, instance=clock)
    foreign.register(Mailer, sender="given")
    foreign.register(dict, lambda: {"made": True})
    foreign.register("options", lambda **options: options, colour="red")

    class Asks:
        def __init__(self, mailer: Mailer, settings: dict) -> None:  # type: ignore[type-arg]
            self.mailer = mailer
            self.settings = settings

    asks = built(foreign, Asks)
    assert asks.mailer.clock is clock
    assert asks.mailer.sender == "given"
    assert asks.settings == {"made": True}
    assert built(foreign, "options") == {"colour": "red"}


def test_a_registration_that_asks_for_its_own_service_decorates_the_one_before() -> None:
    """As in punq; singletons too."""

    class Sender:
        pass

    class Plain(Sender):
        pass

    class Logged(Sender):
        def __init__(self, inner: Sender) -> None:
            self.inner = inner

    for scope in (punq.Scope.transient, punq.Scope.singleton):
        container = punq.Container()
        container.register(Sender, Plain)
        Logged.__init__.__annotations__["inner"] = Sender
        container.register(Sender, Logged, scope=scope)
        sender = built(container, Sender)
        assert isinstance(sender, Logged)
        assert isinstance(sender.inner, Plain)


def test_lists_hold_everything_registered_and_respect_singletons() -> None:
    """list[T] is punq's resolve_all."""

    class Rule:
        pass

    class First(Rule):
        pass

    class Second(Rule):
        pass

    class Rules:
        def __init__(self, rules: list[Rule]) -> None:
            self.rules = rules

    Rules.__init__.__annotations__["rules"] = list[Rule]
    container = punq.Container()
    container.register(Rule, First)
    container.register(Rule, Second, scope=punq.Scope.singleton)
    one, two = built(container, Rules), built(container, Rules)
    assert [type(rule) for rule in one.rules] == [First, Second]
    assert one.rules[0] is not two.rules[0]
    assert one.rules[1] is two.rules[1]


def test_generics_protocols_and_annotated_work_as_keys() -> None:
    """Whatever punq takes as a service."""

    class Repository(Generic[T]):
        pass

    class Sends(Protocol):
        def send(self) -> None: ...

    class Asks:
        def __init__(self, orders: Any, sends: Any, clock: Annotated[Clock, "wall"]) -> None:
            self.orders, self.sends, self.clock = orders, sends, clock

    Asks.__init__.__annotations__.update(orders=Repository[int], sends=Sends, clock=Annotated[Clock, "wall"])
    container = punq.Container()
    container.register(Repository[int], instance="orders")
    container.register(Sends, instance="sends")
    container.register(Clock)
    asks = built(container, Asks)
    assert (asks.orders, asks.sends) == ("orders", "sends")
    assert isinstance(asks.clock, Clock)


def test_defaults_stand_where_nothing_is_registered(foreign: punq.Container) -> None:
    """Also in dataclasses, keyword-only parameters and unannotated ones."""

    @dataclasses.dataclass
    class Settings:
        clock: Clock
        retries: int = 3
        name: str = dataclasses.field(default="x", kw_only=True)

    Settings.__init__.__annotations__["clock"] = Clock

    class Plain:
        def __init__(self, size=5) -> None:  # type: ignore[no-untyped-def]
            self.size = size

    settings = built(foreign, Settings)
    assert (settings.retries, settings.name) == (3, "x")
    assert built(foreign, Plain).size == 5


def test_a_parameter_without_annotation_takes_what_is_registered_under_its_name() -> None:
    """container.register("inventory", instance=...)."""

    class Reserve:
        def __init__(self, inventory) -> None:  # type: ignore[no-untyped-def]
            self.inventory = inventory

    container = punq.Container()
    with pytest.raises(UnresolvableDependency, match="it has no annotation; annotate it") as caught:
        built(container, Reserve)
    assert (caught.value.owner, caught.value.parameter) == (Reserve, "inventory")
    container.register("inventory", instance="stock")
    assert built(container, Reserve).inventory == "stock"


def test_many_parameters_are_passed_in_order() -> None:
    """More than the arities that are spelled out."""
    container = punq.Container()
    for name in "abcde":
        container.register(name, instance=name)

    class Five:
        def __init__(self, a, b, c, d, e) -> None:  # type: ignore[no-untyped-def]
            self.all = a + b + c + d + e

    class Three:
        def __init__(self, a, b, c) -> None:  # type: ignore[no-untyped-def]
            self.all = a + b + c

    assert built(container, Five).all == "abcde"
    assert built(container, Three).all == "abc"


def test_a_later_registration_is_seen(foreign: punq.Container) -> None:
    """In plans that were made before, of children too."""
    child = foreign.child()
    container = PunqContainer(child)
    plan = container.plan(Handler, {})
    assert plan.build().mailer.sender == "shop"
    foreign.register(Mailer, sender="later")
    assert plan.build().mailer.sender == "later"
    child.register(Mailer, sender="child's")
    assert plan.build().mailer.sender == "child's"
    assert container.resolve(Handler).mailer.sender == "child's"


def test_an_invalidation_during_a_compilation_is_not_lost() -> None:
    """The compilation it overtook is used once and not kept."""
    compiled: list[int] = []

    def compile_() -> Any:
        compiled.append(1)
        number = len(compiled)
        if number == 2:
            plan.invalidate()
        return lambda: number

    plan = Plan(compile_).compile()
    plan.invalidate()
    assert [plan.build(), plan.build(), plan.build()] == [2, 3, 3]


def test_a_container_does_not_keep_its_adapters_alive(foreign: punq.Container) -> None:
    """Short-lived mediators leave nothing behind."""
    adapter = PunqContainer(foreign)
    gone = weakref.ref(adapter)
    adapter.resolve(Handler)
    del adapter
    gc.collect()
    assert gone() is None
    foreign.register(str, instance="still works")


def test_missing_dependencies_name_class_parameter_and_type() -> None:
    """However deep."""
    container = punq.Container()
    container.register(Store)
    container.register(Mailer)
    with pytest.raises(UnresolvableDependency, match=r"Store.__init__ parameter 'clock': Clock is not regis") as caught:
        built(container, Handler)
    assert (caught.value.owner, caught.value.parameter, caught.value.dependency) == (Store, "clock", Clock)


class Chicken:
    def __init__(self, egg: Egg) -> None: ...


class Egg:
    def __init__(self, chicken: Chicken) -> None: ...


class Lost:
    def __init__(self, nothing: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("cache", [True, False])
def test_a_circle_is_shown(cache: bool) -> None:
    """Instead of a recursion error."""
    container = punq.Container()
    container.register(Egg, cache=cache)
    container.register(Chicken, cache=cache)
    with pytest.raises(UnresolvableDependency, match=r"depends on itself: (Chicken -> Egg|Egg -> Chicken) ->"):
        built(container, Chicken)


def test_an_annotation_that_cannot_be_found_is_named() -> None:
    """With the class it stands in."""
    with pytest.raises(UnresolvableDependency, match="Lost: annotation 'Nowhere' cannot be found"):
        built(punq.Container(), Lost)


def test_what_is_no_class_and_not_registered_is_refused() -> None:
    """There is nothing to build."""
    with pytest.raises(UnresolvableDependency, match="is not registered"):
        built(punq.Container(), "unknown")


def test_auto_register_is_respected() -> None:
    """punq builds unregistered dependencies then."""
    handler = built(punq.Container(auto_register=True), Handler)
    assert isinstance(handler.store.clock, Clock)


def test_builtins_without_a_signature_are_called_without_arguments() -> None:
    """As dict and type objects of C may be."""
    container = punq.Container()
    container.register(dict)
    assert built(container, dict) == {}


def test_the_adapter_can_be_attached_later_and_says_so_before() -> None:
    """As hand-wired code of the async library does."""
    container = PunqContainer()
    with pytest.raises(ConfigurationError, match="call attach_external_container"):
        container.resolve(Clock)
    foreign = punq.Container()
    container.attach_external_container(foreign)
    assert container.external_container is foreign
    assert isinstance(container.resolve(Clock), Clock)


def test_as_container_takes_what_can_resolve_and_refuses_the_rest() -> None:
    """A punq container is wrapped, any object with resolve() is left alone."""

    class Own:
        def resolve(self, type_: Any) -> Any:
            return type_()

    own = Own()
    assert as_container(own) is own
    assert isinstance(as_container(punq.Container()), PunqContainer)
    with pytest.raises(ConfigurationError, match="int is no container"):
        as_container(3)


def test_a_singleton_may_have_two_consumers_in_one_resolve() -> None:
    """It is the same for both, as for everybody."""
    container = punq.Container()
    container.register(Clock, scope=punq.Scope.singleton)
    container.register(Store)
    container.register(Mailer)
    handler = built(container, Handler)
    assert handler.store.clock is handler.mailer.clock is container.resolve(Clock)
