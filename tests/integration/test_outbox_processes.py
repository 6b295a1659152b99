"""Relays and other processes: NOTIFY, forks, signals, and a broker that hangs when it is time to go."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxMixin, OutboxRelay
from tests import kafka as servers
from tests.integration import outbox_world as world
from tests.integration.outbox_world import QUICK, WAIT, Broker, Counted, Journal, JournalBroker, Repository

ROOT = Path(__file__).parents[2]
NEVER = 3600.0
"""A poll interval that no test lives to see: what happens before that was told."""


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    with world.database(postgres_url) as found:
        yield found


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    with world.engine_of(url) as found:
        yield found


# --- NOTIFY ------------------------------------------------------------------------------------------------------


def store_and_notify(url: str, number: int) -> None:
    """What another process does."""
    with world.engine_of(url) as engine:
        world.store(sessionmaker(engine), [Counted(payload=number, partition_key="key-0")], notify=True)


def test_a_relay_that_listens_sees_what_another_process_commits_at_once(url: str, engine: sa.Engine) -> None:
    """Again after its connection was killed."""
    broker = Broker()
    options: dict[str, Any] = {"outage_backoff": QUICK, "repository": Repository, "listen": True}
    with (
        world.children() as children,
        OutboxRelay(sessionmaker(engine), broker, poll_interval=NEVER, **options),
    ):
        killed = world.eventually(lambda: world.listener(engine))
        children.start(store_and_notify, url, 1)
        broker.wait_for(lambda: len(broker.messages) == 1)
        with engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_terminate_backend(killed)))
        world.eventually(lambda: world.listener(engine) not in (None, killed))
        children.start(store_and_notify, url, 2)
        broker.wait_for(lambda: len(broker.messages) == 2)
    assert broker.by_key() == {"key-0": [1, 2]}
    assert world.eventually(lambda: world.listener(engine) is None), "it hangs up"


class OtherBase(DeclarativeBase):
    pass


class Audit(OutboxMixin, OtherBase):
    __tablename__ = "audit_outbox"


def test_a_relay_listens_for_the_outbox_it_publishes(engine: sa.Engine) -> None:
    """And for no other's."""
    OtherBase.metadata.create_all(engine)
    repository, broker, sessions = functools.partial(Repository, model=Audit), Broker(), sessionmaker(engine)
    with OutboxRelay(sessions, broker, poll_interval=NEVER, repository=repository, listen=True):
        world.eventually(lambda: world.listener(engine))
        with world.children() as children:
            children.start(store_audit, engine.url.render_as_string(hide_password=False))
            broker.wait_for(lambda: len(broker.messages) == 1)


def store_audit(url: str) -> None:
    with world.engine_of(url) as engine:
        world.store(sessionmaker(engine), world.numbered(1), notify=True, model=Audit)


def test_a_savepoint_that_is_undone_does_not_take_the_notification_with_it(url: str, engine: sa.Engine) -> None:
    """What is added behind it is told all the same."""
    broker = Broker()
    with (
        world.children() as children,
        OutboxRelay(sessionmaker(engine), broker, poll_interval=NEVER, repository=Repository, listen=True),
    ):
        world.eventually(lambda: world.listener(engine))
        children.start(store_behind_a_savepoint, url)
        broker.wait_for(lambda: len(broker.messages) == 1)
    assert broker.by_key() == {"key-0": [2]}


def store_behind_a_savepoint(url: str) -> None:
    with world.engine_of(url) as engine, Session(engine) as session:
        outbox = Repository(session, notify=True)
        with suppress(LookupError), session.begin_nested():
            outbox.add(Counted(payload=1, partition_key="key-0"))
            raise LookupError
        outbox.add(Counted(payload=2, partition_key="key-0"))
        outbox.commit()


# --- forks -------------------------------------------------------------------------------------------------------

FORK = """
import contextlib, os, sys, threading
from pathlib import Path
from sqlalchemy.orm import sessionmaker
from cqrs_sync.outbox import OutboxRelay
from tests.integration import outbox_world as world
from tests.integration.outbox_world import Broker, Counted, JournalBroker, Repository

url, journal, listen = sys.argv[1], sys.argv[2], sys.argv[3] == "listen"
context = world.engine_of(url)
engine = context.__enter__()
sessions = sessionmaker(engine)
# SQLite has locks of its own, which a child would inherit for ever: nobody may be inside of it when a process forks.
forking = threading.RLock() if engine.dialect.name == "sqlite" else contextlib.nullcontext()

class Relay(OutboxRelay):
    def step(self):
        with forking:
            return super().step()

def store(key, first, count=20):
    for number in range(first, first + count):
        with forking:
            world.store(sessions, [Counted(payload=number, partition_key=key)])

relay = Relay(sessions, JournalBroker(journal, "parent"), 3, 0.02, repository=Repository, listen=listen)
store("before", 0)
relay.start()
world.eventually(lambda: world.rows(engine)[-1].status == "produced")
heard_by = listen and world.eventually(lambda: world.listener(engine))
writer = threading.Thread(target=store, args=("parent", 0, 60))
writer.start()
world.eventually(lambda: b'"parent", 0]' in Path(journal).read_bytes())  # the relay is at work while it forks
with forking:
    child = os.fork()
if not child:
    engine.dispose(close=False)  # what SQLAlchemy asks of every child
    assert not relay.running
    assert not [t.name for t in threading.enumerate() if t.name.startswith("cqrs-")]
    store("child", 0)
    relay.stop()
    own = Relay(sessions, JournalBroker(journal, "child"), 3, 0.02, repository=Repository, listen=listen)
    for each in (own, relay):  # a new one, and the one it has inherited
        each.start()
        store("child", 20 if each is own else 40)
        world.eventually(lambda: not world.statuses(engine).get("new"))
        each.stop()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
writer.join()
assert relay.running
assert not listen or world.listener(engine) == heard_by, "the child has hung up for its parent"
store("before", 20)
world.eventually(lambda: not world.statuses(engine).get("new"))
relay.stop()
context.__exit__(None, None, None)
assert threading.active_count() == 1
print("ok")
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own; one that hangs fails."""
    return subprocess.run(
        [sys.executable, "-W", "error", *KAFKA_IMPORTS, "-c", textwrap.dedent(program), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )


KAFKA_IMPORTS = ("-W", "ignore:read_text is deprecated", "-W", "ignore:open_text is deprecated")


@pytest.mark.parametrize("database", ["postgresql", "postgresql-listen", "sqlite"])
def test_a_child_of_a_process_with_a_relay_commits_and_starts_its_own(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    """And the parent's goes on; nothing is sent twice."""
    url = world.sqlite_file(tmp_path) if database == "sqlite" else request.getfixturevalue("url")
    journal = Journal(tmp_path / "journal")
    done = run(FORK, url, str(journal.path), "listen" if database.endswith("listen") else "")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    journal.check({"before": list(range(40)), "parent": list(range(60)), "child": list(range(60))})


# --- signals -----------------------------------------------------------------------------------------------------


class GatedBroker(JournalBroker):
    """Waits with the second message of a batch until there is a file."""

    def __init__(self, path: Path, gate: Path) -> None:
        super().__init__(path, "gated")
        self._gate = gate
        self._sending = 0

    def send_message(self, message: Message) -> None:
        self._sending += 1
        if self._sending == 2:
            self._note(waiting=True)
            world.eventually(self._gate.exists)
        super().send_message(message)


def run_gated(url: str, journal: Path, gate: Path, ended: Path) -> None:
    with world.engine_of(url) as engine:
        relay = OutboxRelay(sessionmaker(engine), GatedBroker(journal, gate), 5, NEVER, repository=Repository)
        relay.run_forever(stop_timeout=WAIT)
    ended.touch()


def test_a_relay_in_the_foreground_finishes_its_batch_at_sigterm(url: str, engine: sa.Engine, tmp_path: Path) -> None:
    """And begins no other; what is left waits for the next."""
    journal, gate, ended = Journal(tmp_path / "journal"), tmp_path / "gate", tmp_path / "ended"
    world.store(sessionmaker(engine), world.numbered(20))
    with world.children() as children:
        process = children.start(run_gated, url, journal.path, gate, ended)
        world.eventually(lambda: any("waiting" in entry for entry in journal.entries()))
        process.terminate()
        process.join(0.3)
        assert process.exitcode is None, "it has a batch in hand"
        gate.touch()
        process.join(WAIT)
        assert (process.exitcode, ended.exists()) == (0, True)
    assert [each.number for each in journal.sent()] == [0, 1, 2, 3, 4]
    assert world.statuses(engine) == {"produced": 5, "new": 15}


HANGS = """
import sys, threading
from sqlalchemy.orm import sessionmaker
from cqrs_sync.errors import StopTimeout
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.outbox import OutboxRelay
from tests.integration import outbox_world as world
from tests.integration.outbox_world import Repository
from {module} import {adapter} as Adapter

url, address = sys.argv[1:]
context = world.engine_of(url)
engine = context.__enter__()
broker = KafkaMessageBroker(Adapter(address, timeout=300.0))
relay = OutboxRelay(sessionmaker(engine), broker, repository=Repository)
sending = threading.Event()
send = broker.send_messages
broker.send_messages = lambda messages: sending.set() or send(messages)
relay.start()
assert sending.wait(30)
try:
    relay.stop(timeout=0.2)
except StopTimeout as error:
    print(error)
broker.close()
"""

ADAPTERS = {
    "kafka-python": ("cqrs_sync.adapters.kafka", "KafkaProducerAdapter"),
    "confluent": ("cqrs_sync.adapters.confluent", "ConfluentProducerAdapter"),
}


@pytest.mark.parametrize("client", list(ADAPTERS))
def test_a_relay_whose_kafka_hangs_says_so_and_the_process_can_go(
    kafka: servers.Kafka, url: str, engine: sa.Engine, client: str
) -> None:
    """Its events wait for the next one."""
    if not isinstance(kafka, servers.LocalKafka):
        pytest.skip("the Kafka of CQRS_TEST_KAFKA cannot be frozen")
    world.store(sessionmaker(engine), world.numbered(10))
    module, adapter = ADAPTERS[client]
    with kafka.paused():
        done = run(HANGS.format(module=module, adapter=adapter), url, kafka.address)
    assert done.returncode == 0, done.stderr
    assert "cqrs-outbox-relay" in done.stdout
    assert world.statuses(engine) == {"new": 10}
    broker = Broker()
    world.eventually(lambda: OutboxRelay(sessionmaker(engine), broker, repository=Repository).drain() == 10)


class HangingBroker(MessageBroker):
    """Never answers, until it is told."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()

    def send_message(self, message: Message) -> None:
        self.asked.set()
        assert self.go.wait(WAIT)

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return super().send_messages(messages)


def test_a_stop_that_timed_out_can_be_repeated(engine: sa.Engine) -> None:
    """When the broker answers after all, the batch is marked and the thread ends."""
    from cqrs_sync.errors import StopTimeout

    broker = HangingBroker()
    world.store(sessionmaker(engine), world.numbered(10))
    relay = OutboxRelay(sessionmaker(engine), broker, 5, repository=Repository)
    relay.start()
    assert broker.asked.wait(WAIT)
    with pytest.raises(StopTimeout):
        relay.stop(timeout=0.05)
    assert relay.running
    broker.go.set()
    relay.stop()
    assert world.statuses(engine) == {"produced": 5, "new": 5}
