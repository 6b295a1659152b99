"""Sagas on a PostgreSQL that is killed under them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.errors import SagaConcurrencyError, SagaStorageUnavailable
from cqrs_sync.saga.step import TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from tests import postgres
from tests.unit.sagas import Order, mediator_of, saga, step


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.LocalPostgres]:
    """A server of our own; where there is none, these are skipped, and the others' fixture says so in CI."""
    try:
        with postgres.local() as found:
            yield found
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture
def engine(server: postgres.LocalPostgres) -> Iterator[sa.Engine]:
    """An engine with the tables."""
    engine = sa.create_engine(server.url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS charges (saga_id TEXT)"))
    yield engine
    engine.dispose()


def test_a_runner_goes_on_when_the_database_comes_back_within_its_lease(
    server: postgres.LocalPostgres, engine: sa.Engine
) -> None:
    """Killed and started again while each of the steps is at work, and while it is away."""
    effects: list[str] = []
    back = threading.Timer(0.5, server.start)

    def restart(self: Any, context: Order) -> None:
        with server.away():
            pass

    def away_for_a_while(self: Any, context: Order) -> None:
        server.kill()
        back.start()

    order_saga = saga(step("a", effects, restart), step("b", effects, away_for_a_while), step("c", effects))
    with mediator_of(order_saga, SqlAlchemySagaStorage(sessionmaker(engine))) as mediator:
        outcome = mediator.run(Order())
    back.join()
    assert outcome.completed
    assert effects == ["a", "b", "c"]


def test_a_rollback_goes_on_too(server: postgres.LocalPostgres, engine: sa.Engine) -> None:
    """The turn is written before anything is undone."""
    effects: list[str] = []

    def restart(self: Any, context: Order) -> None:
        with server.away():
            pass

    def fail(self: Any, context: Order) -> None:
        restart(self, context)
        raise ValueError("no truck")

    order_saga = saga(step("a", effects, None, restart), step("b", effects, fail))
    with mediator_of(order_saga, SqlAlchemySagaStorage(sessionmaker(engine))) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["a", "b", "-a"]


def test_a_transactional_step_is_handed_to_recovery_and_done_once(
    server: postgres.LocalPostgres, engine: sa.Engine
) -> None:
    """What it had written is gone with its transaction, so it is neither failed nor in doubt."""
    storage = SqlAlchemySagaStorage(sessionmaker(engine), lease=1.0)
    attempts: list[uuid.UUID] = []

    class Charge(TransactionalSagaStep[Order, None]):
        def act(self, context: Order, session: Session) -> Any:
            attempts.append(self.saga_id)
            session.execute(sa.text("INSERT INTO charges VALUES (:saga)"), {"saga": str(self.saga_id)})
            if len(attempts) == 1:
                with server.away():
                    pass

        def compensate(self, context: Order, session: Session) -> None: ...

    saga_id = uuid.uuid4()
    with mediator_of(saga(Charge), storage) as mediator:
        with pytest.raises(SagaStorageUnavailable):
            mediator.run(Order(), saga_id)
        for _ in range(600):
            try:
                outcome = mediator.recover(saga_id)
                break
            except SagaConcurrencyError:  # until the lease of the first attempt has ended
                threading.Event().wait(0.02)
        assert outcome.completed
    with engine.connect() as connection:
        charges = list(connection.scalars(sa.text("SELECT saga_id FROM charges")))
    assert charges == [str(saga_id)]
    assert attempts == [saga_id] * 2
