"""Sagas for tests: steps that note what they do, and a storage that dies."""

from __future__ import annotations

import dataclasses
import datetime
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import punq

from cqrs_sync.errors import SagaStorageUnavailable
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler
from cqrs_sync.saga.storage.memory import MemorySagaStorage
from cqrs_sync.saga.storage.models import NewSaga, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.unit_of_work.protocol import Transaction

AT_ONCE = Retry(attempts=3, delay=0)
"""Three attempts without a wait."""


HOPELESS = Retry(attempts=3, delay=0, exceptions=(EOFError,))
"""No further attempt, now or later, after any error of these tests."""


@dataclasses.dataclass
class Order(SagaContext):
    """The context of the tests."""

    order_id: str = "o1"
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)
    note: Any = None


Hook = Callable[[Any, Any], Any]


def step(
    name: str,
    effects: list[str],
    act: Hook | Exception | None = None,
    compensate: Hook | Exception | None = None,
    *,
    base: Any = SagaStepHandler[Order, str],
    **attributes: Any,
) -> Any:
    """A step class that notes its name when it acts, and ``-name`` when it compensates; then it does what is given."""

    def call(do: Hook | Exception | None, self: Any, context: Any) -> Any:
        if isinstance(do, Exception):
            raise do
        return None if do is None else do(self, context)

    def act_(self: Any, context: Any, *session: Any) -> Any:
        effects.append(name)
        context.numbers[name] = len(context.numbers)
        result = call(act, self, context)
        return self._generate_step_result(name) if result is None else result

    def compensate_(self: Any, context: Any, *session: Any) -> None:
        effects.append(f"-{name}")
        call(compensate, self, context)

    body = {"act": act_, "compensate": compensate_, "compensate_retry": AT_ONCE, **attributes}
    return types.new_class(name, (base,), {}, lambda namespace: namespace.update(body))


def saga(*steps: Any, context: Any = Order, **attributes: Any) -> Any:
    """A saga class of these steps."""
    body = {"steps": list(steps), **attributes}
    return types.new_class("OrderSaga", (Saga[context],), {}, lambda namespace: namespace.update(body))


@contextmanager
def mediator_of(saga_type: Any, storage: SagaStorage, **settings: Any) -> Iterator[SagaMediator]:
    """A mediator for one saga, which is closed afterwards."""
    settings = {"di_container": punq.Container(), "compensation_retry_delay": 0, **settings}
    with bootstrap(sagas_mapper=lambda m: m.bind(Order, saga_type), saga_storage=storage, **settings) as mediator:
        yield mediator


class Died(BaseException):
    """What a process does not live to see."""


class Storage(MemorySagaStorage):
    """A storage in memory whose process can die before or after a write, or that can go away for some time.

    Attributes:
        writes: what was written.
        die_before: at which write (a creation is the first) the process dies before it is done.
        die_after: at which write it dies when it is done.
        outages: how many of the next calls find the storage away.
        answers_lost: how many of the next writes are done, and the storage goes away before it can say so.
    """

    def __init__(self, lease: float = 3600.0) -> None:
        super().__init__(lease)
        self.writes: list[SagaWrite] = []
        self.die_before = self.die_after = 0
        self.outages = self.answers_lost = 0
        self.is_dead = False
        self._count = 0

    def create_saga(self, saga: NewSaga, owner: str) -> bool:
        self._enter()
        created = super().create_saga(saga, owner)
        self._leave()
        return created

    def write(self, write: SagaWrite, transaction: Transaction | None = None) -> None:
        self._enter()
        super().write(write, transaction)
        self.writes.append(write)
        if self.answers_lost:
            self.answers_lost -= 1
            raise SagaStorageUnavailable("the answer is lost")
        self._leave()

    def renew(self, leases: Sequence[tuple[uuid.UUID, str]]) -> set[tuple[uuid.UUID, str]]:
        self._away()
        return super().renew(leases)

    def load_saga_state(self, saga_id: uuid.UUID) -> Any:
        self._away()
        return super().load_saga_state(saga_id)

    def restart(self) -> None:
        """Be another process: all leases of the old one have ended."""
        self.is_dead = False
        self.die_before = self.die_after = 0
        for saga_id in list(self._sagas):
            self.expire(saga_id)

    def expire(self, saga_id: uuid.UUID) -> None:
        """End the lease of a saga, if it has one."""
        state = self._sagas[saga_id]
        if state.available_at is not None:
            past = state.available_at - datetime.timedelta(days=1)
            self._sagas[saga_id] = dataclasses.replace(state, available_at=past)

    def _enter(self) -> None:
        self._away()
        self._count += 1
        if self.is_dead or self._count == self.die_before:
            self.is_dead = True
            raise Died

    def _leave(self) -> None:
        if self._count == self.die_after:
            self.is_dead = True
            raise Died

    def _away(self) -> None:
        if self.outages:
            self.outages -= 1
            raise SagaStorageUnavailable("the storage is away")


def log_of(storage: SagaStorage, saga_id: uuid.UUID) -> list[tuple[str, str, str]]:
    """The log as names, actions and statuses."""
    return [(entry.step_name, entry.action, str(entry.status)) for entry in storage.get_step_history(saga_id)]
