"""Recovering sagas whose process has died, with one recovery worker and with several."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from time import perf_counter

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from benchmarks import servers
from benchmarks.children import child, hear, tell
from benchmarks.progress import say
from benchmarks.report import Row, Section
from benchmarks.sagas import Order, mediator_of, with_connections
from benchmarks.timing import Effort
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage

WORKERS = 4
ROUNDS = 3
"""At most: a round takes minutes."""

CONNECTIONS = 2
"""For the worker's own thread and the heartbeat, beside one for each saga that is run."""

MULTIPLY = """
WITH stale AS (
    INSERT INTO saga_executions (id, name, status, context, definition, version, current_step, attempts, locked_by,
                                 available_at, error, created_at, updated_at)
    SELECT gen_random_uuid(), name, status, context, definition, version, current_step, attempts, locked_by,
           now() - interval '1 minute', error, created_at, now() - interval '2 minutes'
    FROM saga_executions, generate_series(1, :sagas)
    RETURNING id
)
INSERT INTO saga_logs (saga_id, step_name, action, status, details, attempts, duration, actor, created_at)
SELECT stale.id, step_name, action, status, details, attempts, duration, actor, created_at
FROM saga_logs, stale
"""

Start = Callable[[Engine], AbstractContextManager[object]]
"""Starts recovery workers, from the moment when the block begins, and stops them when it ends."""


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    title = f"sagas: recovering {effort.stale:,} of 3 steps with one done, whose process has died, seconds per saga"
    try:
        with servers.database() as engine, with_connections(engine, WORKERS + CONNECTIONS) as wide:
            yield _recovered(title, wide, effort)
    except LookupError as error:
        yield servers.absent(title, error)


def _recovered(title: str, engine: Engine, effort: Effort) -> Section:
    Base.metadata.create_all(engine)
    contestants: dict[str, Start] = {
        "1 worker with 1 thread": partial(_in_threads, 1),
        f"1 worker with {WORKERS} threads, the default": partial(_in_threads, WORKERS),
        f"{WORKERS} workers with 1 thread each, in processes": _in_processes,
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds := min(ROUNDS, effort.drains)):
        for name, start in contestants.items():
            say(f"saga-recovery: {name}, round {number + 1} of {rounds}")
            leave_stale(engine, effort.stale)
            taken[name].append(_until_all_have_ended(engine, start) / effort.stale)
            _check(engine, effort.stale)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    first = next(iter(medians.values()))
    rows = [
        Row(name=name, seconds=seconds, figure=first / seconds, unit="x one", note=f"{1 / seconds:,.0f}/s")
        for name, seconds in medians.items()
    ]
    return Section(title, rows, f"{servers.settings(engine)}. Three commits each: a claim, and two steps.")


def leave_stale(engine: Engine, sagas: int) -> None:
    """Leave so many sagas as a process leaves them that dies in its second step, and whose leases have ended."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("TRUNCATE saga_executions, saga_logs"))
        with (
            mediator_of(SqlAlchemySagaStorage(sessionmaker(engine))) as mediator,
            closing(mediator.stream(Order())) as stream,
        ):
            template = {"id": next(stream).saga_id}
            connection.execute(text(MULTIPLY), {"sagas": sagas})
        connection.execute(text("DELETE FROM saga_logs WHERE saga_id = :id"), template)
        connection.execute(text("DELETE FROM saga_executions WHERE id = :id"), template)
        connection.execute(text("VACUUM ANALYZE saga_executions, saga_logs"))


def _until_all_have_ended(engine: Engine, start: Start) -> float:
    """Return how long it takes until no saga is unfinished; looking for that costs next to nothing."""
    unfinished = text("SELECT EXISTS (SELECT FROM saga_executions WHERE finished_at IS NULL)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, start(engine):
        started = perf_counter()
        while connection.execute(unfinished).scalar_one():
            time.sleep(0.02)
        return perf_counter() - started


def _check(engine: Engine, sagas: int) -> None:
    with engine.connect() as connection:
        statuses = connection.execute(text("SELECT status, count(*) FROM saga_executions GROUP BY status")).all()
    if statuses != [("completed", sagas)]:
        raise RuntimeError(f"not all of {sagas} sagas were recovered: {statuses}")


@contextmanager
def _in_threads(threads: int, engine: Engine) -> Iterator[None]:
    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    with mediator_of(storage) as mediator, SagaRecoveryWorker(mediator, max_workers=threads):
        yield


@contextmanager
def _in_processes(engine: Engine) -> Iterator[None]:
    url = engine.url.render_as_string(hide_password=False)
    with ExitStack() as stack:
        workers = [stack.enter_context(child("benchmarks.saga_recovery", url)) for _ in range(WORKERS)]
        for worker in workers:
            hear(worker, "ready")
        for worker in workers:
            tell(worker, "go")
        yield
        for worker in workers:
            tell(worker, "stop")
        for worker in workers:
            hear(worker, "done")


def main() -> None:
    """Recover sagas, from a process of its own, from one word on standard input to the next."""
    engine = create_engine(sys.argv[1])
    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    with mediator_of(storage) as mediator:
        storage.backlog()  # connected
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        with SagaRecoveryWorker(mediator, max_workers=1):
            sys.stdin.readline()
        sys.stdout.write("done\n")
        sys.stdout.flush()
    engine.dispose()


if __name__ == "__main__":
    main()
