"""Groups of steps that are interrupted, and groups whose steps write in transactions."""

from __future__ import annotations

import functools
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.saga import leases
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.step import TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from tests.unit.sagas import Order, Storage, mediator_of, saga, step

WAIT = 30.0


class Interrupted:
    """A pool whose caller is interrupted while a thread is in the first step; the others never begin.

    Args:
        begun: when that step has begun.
    """

    def __init__(self, begun: threading.Event) -> None:
        self._begun = begun
        self.thread: threading.Thread | None = None
        self.left: list[Any] = []

    def run(self, take: Any, items: Any) -> None:
        first, *others = items
        self.left = [functools.partial(take, other) for other in others]
        self.thread = threading.Thread(target=take, args=(first,))
        self.thread.start()
        assert self._begun.wait(WAIT)
        raise KeyboardInterrupt

    def close(self, timeout: float) -> None: ...


def test_an_interrupted_group_is_handed_over_when_its_last_step_has_ended() -> None:
    """Until then it keeps its lease, or another process would run the same step at the same time."""
    effects, storage = list[str](), Storage()
    begun, go = threading.Event(), threading.Event()

    def work(self: Any, context: Order) -> None:
        begun.set()
        assert go.wait(WAIT)

    group = Parallel(step("a", effects, work), step("b", effects))
    saga_id, pool = uuid.uuid4(), Interrupted(begun)
    with mediator_of(saga(group), storage) as mediator:
        mediator.engine._pool = pool  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            mediator.run(Order(), saga_id)
        held = storage.load_saga_state(saga_id)
        assert held.locked_by is not None
        assert storage.get_sagas_for_recovery("r1") == []
        assert [lease.owner for lease in leases._leases.held()] == [held.locked_by]
        for begin in pool.left:
            begin()
        go.set()
        assert pool.thread is not None
        pool.thread.join(WAIT)
        assert leases._leases.held() == []
        [state] = storage.get_sagas_for_recovery("r1")
        assert state.in_doubt
        assert effects == ["a"]  # and it is recorded
        mediator.engine.give_back(state)
        mediator.engine._pool = None
        assert mediator.recover(saga_id).completed
    assert effects == ["a", "b"]


def test_a_transactional_step_of_a_group_keeps_nobody_waiting_on_sqlite(tmp_path: Path) -> None:
    """Whoever writes there keeps all others from writing, the group's other steps included."""
    engine = create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 0.1})
    Base.metadata.create_all(engine)
    effects, returned, inserted = list[str](), threading.Event(), threading.Event()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id TEXT)"))

    class Place(TransactionalSagaStep[Order, None]):
        def act(self, context: Order, session: Session) -> Any:
            session.execute(text("INSERT INTO orders VALUES ('o1')"))
            effects.append("place")
            inserted.set()
            assert returned.wait(WAIT)

        def compensate(self, context: Order, session: Session) -> None: ...

    def reserve(self: Any, context: Order) -> None:
        assert inserted.wait(WAIT)
        returned.set()

    storage = SqlAlchemySagaStorage(sessionmaker(engine), lease=6.0)
    with mediator_of(saga(Parallel(Place, step("reserve", effects, reserve))), storage) as mediator:
        outcome = mediator.run(Order())
    assert (outcome.status, outcome.error) == (SagaStatus.COMPLETED, None)
    assert sorted(effects) == ["place", "reserve"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM orders")).scalar() == 1
    engine.dispose()
