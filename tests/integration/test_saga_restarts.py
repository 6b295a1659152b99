"""A PostgreSQL that is killed and started again while sagas are run and recovered."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import SagaConcurrencyError, SagaStorageUnavailable
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from tests import postgres
from tests.integration import outbox_world as world
from tests.integration import saga_world as sagas
from tests.integration.saga_world import Journal, Services

PATIENT, IMPATIENT = 4.0, 0.8
"""Leases: an outage is shorter than the one, and longer than the other."""

QUICK = Backoff(initial=0.05, maximum=0.2)


@pytest.fixture
def server() -> Iterator[postgres.LocalPostgres]:
    """A server of our own; where there is none this is skipped, and the others' fixture says so in CI."""
    try:
        with postgres.local() as found:
            yield found
    except LookupError as error:
        pytest.skip(str(error))


class Runner(threading.Thread):
    """Runs the sagas of some numbers, one after another, and counts what becomes of them here.

    Attributes:
        counted: how each run ended: ``done``, ``went on`` (the database was away meanwhile), ``handed over``.
        error: what it did not survive.
    """

    def __init__(self, mediator: SagaMediator, numbers: range, restarts: list[float]) -> None:
        super().__init__()
        self._mediator = mediator
        self._numbers = numbers
        self._restarts = restarts
        self.counted: Counter[str] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for number in self._numbers:
                self._run_to_the_end(number)
        except BaseException as error:
            self.error = error
            raise

    def _run_to_the_end(self, number: int) -> None:
        """As somebody whose order has an id does: again, until it is known that somebody has it."""
        while True:
            restarts = len(self._restarts)
            try:
                self._mediator.run(sagas.OrderContext(number), sagas.id_of(number))
            except SagaConcurrencyError:  # recovery was faster, or the answer to its creation was lost
                self.counted["handed over"] += 1
                return
            except SagaStorageUnavailable:
                self.counted["unavailable"] += 1
                threading.Event().wait(0.05)
            else:
                self.counted["done" if len(self._restarts) == restarts else "went on"] += 1
                return


@pytest.mark.parametrize(
    ("count", "restarts"),
    [pytest.param(120, 2, id="short"), pytest.param(3_000, 20, id="long", marks=pytest.mark.soak)],
)
def test_a_postgresql_that_is_killed_under_load_loses_no_saga(
    server: postgres.LocalPostgres, tmp_path: Path, count: int, restarts: int
) -> None:
    """Patient runners go on when it is back, others hand over, and two recovery workers finish what is left."""
    journal = Journal(tmp_path / "journal", "test")
    sagas.with_tables(server.url)
    restarted: list[float] = []
    with ExitStack() as opened:
        services = Services(journal, work=0.02)
        mediators = [opened.enter_context(sagas.shop(server.url, services, lease)) for lease in (PATIENT, IMPATIENT)]
        for mediator in mediators:
            opened.enter_context(SagaRecoveryWorker(mediator, 2, sagas.POLL, outage_backoff=QUICK))
        runners = [Runner(mediators[each % 3 // 2], range(each, count, 6), restarted) for each in range(6)]
        for runner in runners:
            runner.start()
        for number in range(restarts):
            progress = (number + 1) * count // (restarts + 2)
            world.eventually(lambda least=progress: len(journal.entries("done")) > 4 * least)
            with server.away():
                threading.Event().wait(1.5 * IMPATIENT)
                restarted.append(1)
        for runner in runners:
            runner.join(world.WAIT)
        storage = mediators[0].engine.storage
        assert isinstance(storage, SqlAlchemySagaStorage)
        world.eventually(lambda: not storage.find())
        states = sagas.states_of(storage)
        with world.engine_of(server.url) as engine:
            sagas.check_parcels(engine, states)
    assert [runner.error for runner in runners] == [None] * 6
    assert {state.saga_id for state in states} == {sagas.id_of(number) for number in range(count)}
    assert {state.status for state in states} == {SagaStatus.COMPLETED, SagaStatus.FAILED}
    sagas.check(journal.entries(), states, outages=True)
    counted = sum((runner.counted for runner in runners), Counter())
    assert counted["went on"] > 0
    assert counted["unavailable"] > 0
    assert counted["done"] + counted["went on"] + counted["handed over"] == count
    owners = Counter(saga for saga, _ in {(entry["saga"], entry["token"]) for entry in journal.entries("begun")})
    assert max(owners.values()) > 1, "nothing was handed over"
