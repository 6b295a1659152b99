"""Retention: what was published is deleted while everything else goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.outbox import OutboxModel, OutboxRelay
from tests.integration import outbox_world as world
from tests.integration.outbox_world import Broker, Counted, Repository

AT_ONCE = "-c lock_timeout=500ms"
"""Whoever waits for a lock fails."""


@pytest.fixture
def engine(postgres_url: str) -> Iterator[sa.Engine]:
    """PostgreSQL, where a statement that waits for a lock raises."""
    with (
        world.database(postgres_url) as url,
        world.engine_of(url, connect_args={"options": AT_ONCE}) as found,
    ):
        yield found


def store_produced(engine: sa.Engine, count: int) -> None:
    """Store events that were published a year ago."""
    world.store(sessionmaker(engine), world.numbered(count, 50))
    with engine.begin() as connection:
        ago = sa.func.now() - sa.text("interval '1 year'")
        connection.execute(sa.update(OutboxModel).values(status="produced", produced_at=ago))


def produced(engine: sa.Engine) -> int:
    return world.statuses(engine).get("produced", 0)


def locks(outbox: Any) -> set[str]:
    """What a transaction holds of the table, beside the rows."""
    text = "SELECT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'outbox'::regclass"
    return set(outbox.session.scalars(sa.text(text)))


def test_a_purge_waits_for_nobody_and_nobody_for_it(engine: sa.Engine) -> None:
    """An event that is being added, one that is being published, another purge."""
    store_produced(engine, 2500)
    sessions = sessionmaker(engine)
    world.store(sessions, world.numbered(3))
    relay = OutboxRelay(sessions, Broker(), repository=Repository)
    with (
        closing(Repository(sessions())) as adding,
        closing(Repository(sessions())) as publishing,
        closing(Repository(sessions())) as purging,
    ):
        adding.add(Counted(payload=3, partition_key="other"))
        adding.session.flush()
        events = publishing.get_many()
        assert len(events) == 3
        assert purging.purge(3600) == 1000, "uncommitted"
        assert locks(purging) <= {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}
        assert relay.purge() == 1000, "leaves those alone"
        assert relay.purge() == 500
        assert relay.purge() == 0
        publishing.mark_produced([event.id for event in events])
        publishing.commit()
        adding.commit()
        assert produced(engine) == 1003, "what is not committed"
        purging.commit()
    assert world.statuses(engine) == {"produced": 3, "new": 1}


def test_events_that_flow_without_a_pause_do_not_keep_a_relay_from_purging(engine: sa.Engine) -> None:
    """A step publishes a batch and deletes a thousand rows."""
    store_produced(engine, 3500)
    sessions = sessionmaker(engine)
    world.store(sessions, world.numbered(20))
    relay = OutboxRelay(sessions, Broker(), 1, repository=Repository)
    left = []
    for step in range(5):
        assert relay.step() == 0.0, "there is more to do"
        left.append(produced(engine) - (step + 1))
    assert left == [2500, 1500, 500, 0, 0]


def test_retention_goes_on_while_writers_write_and_relays_publish(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is published once, in the end nothing is left, and nobody has waited for a lock."""
    sessions, broker = sessionmaker(engine), Broker()
    store_produced(engine, 5000)

    def write(key: str) -> None:
        for number in range(0, 200, 4):
            world.store(sessions, [Counted(payload=number + each, partition_key=key) for each in range(4)])

    writers = [threading.Thread(target=write, args=(f"key-{number}",)) for number in range(3)]
    relays: list[Any] = [
        OutboxRelay(sessions, broker, 10, 0.05, retention=0.001, repository=Repository, name=f"cqrs-relay-{number}")
        for number in range(2)
    ]
    for thread in (*writers, *relays):
        thread.start()
    try:
        for writer in writers:
            writer.join(world.WAIT)
        world.eventually(lambda: len(broker.messages) >= 600 and "new" not in world.statuses(engine))
    finally:
        for relay in relays:
            relay.stop()
    assert not world.errors(caplog)
    while relays[0].purge():
        pass
    assert broker.by_key() == {f"key-{number}": list(range(200)) for number in range(3)}
    assert world.rows(engine) == []


def test_a_retention_of_zero_leaves_no_row_behind(tmp_path: Path, engine: sa.Engine) -> None:
    """What is rejected is kept."""
    with world.engine_of(world.sqlite_file(tmp_path)) as file:
        for each in (file, engine):
            sessions, broker = sessionmaker(each), Broker()
            world.store(sessions, world.numbered(60, 6))
            with OutboxRelay(sessions, broker, 7, 0.05, retention=0, repository=Repository):
                world.eventually(lambda e=each: not world.rows(e))
            assert broker.by_key() == {f"key-{key}": list(range(10)) for key in range(6)}


def test_a_purge_that_fails_does_not_stop_the_relay(engine: sa.Engine) -> None:
    """Somebody refers to a produced row, say: events are published all the same, and at once."""
    store_produced(engine, 1)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE refers (id bigint REFERENCES outbox)"))
        connection.execute(sa.text("INSERT INTO refers SELECT id FROM outbox"))
    sessions, broker = sessionmaker(engine), Broker()
    world.store(sessions, world.numbered(30))
    waits = world.Backoff(initial=3600, maximum=3600)
    options: dict[str, Any] = {"batch_size": 10, "outage_backoff": waits, "repository": Repository}
    with OutboxRelay(sessions, broker, **options):
        broker.wait_for(lambda: len(broker.messages) == 30)
