"""Kafka brokers against a real Kafka: what arrives, what is refused, and what an outage does."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cqrs_sync.adapters.confluent import ConfluentProducerAdapter, confluent_producer_factory
from cqrs_sync.adapters.kafka import KafkaProducerAdapter, kafka_producer_factory
from cqrs_sync.errors import BrokerUnavailable, MessageHeldBack, MessageRejected
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.message_brokers.protocol import Message
from tests import kafka as servers

# kafka-python leaves a socket to the garbage collector for every connection that fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

SHORT = 1.5
"""Seconds for one call where the test waits for them to run out."""
WAIT = 60
"""Seconds after which something hangs."""
ROOT = Path(__file__).resolve().parents[2]

Adapter = type[KafkaProducerAdapter] | type[ConfluentProducerAdapter]
Open = Callable[..., KafkaMessageBroker]


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # while the filter above holds


@pytest.fixture(params=[KafkaProducerAdapter, ConfluentProducerAdapter], ids=["kafka-python", "confluent"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    found: Adapter = request.param
    return found


@pytest.fixture
def open_broker(adapter: Adapter, kafka: servers.Kafka) -> Iterator[Open]:
    """Opens brokers on the real Kafka, and closes them after the test."""
    opened: list[KafkaMessageBroker] = []

    def open_broker(*, one_in_flight_per_key: bool = False, **options: Any) -> KafkaMessageBroker:
        producer = adapter(options.pop("servers", kafka.address), **options)
        opened.append(KafkaMessageBroker(producer, one_in_flight_per_key=one_in_flight_per_key))
        return opened[-1]

    yield open_broker
    for broker in opened:
        broker.close()


@pytest.fixture
def local(kafka: servers.Kafka) -> Iterator[servers.LocalKafka]:
    """The real Kafka, if it is ours to kill and to freeze."""
    if not isinstance(kafka, servers.LocalKafka):
        pytest.skip("the Kafka of CQRS_TEST_KAFKA cannot be killed")
    yield kafka
    kafka.resume()


@pytest.fixture
def topic() -> str:
    """The name of a topic that nobody has used."""
    return f"t-{uuid.uuid4().hex}"


def message(topic: str, number: int = 0, key: str | None = None, size: int = 0) -> Message:
    return Message("numbered", topic, None, payload_bytes=b"%d" % number + b" " * size, key=key)


def numbers(found: Sequence[Any]) -> dict[str | None, list[int]]:
    """The numbers that arrived, by key."""
    by_key: defaultdict[str | None, list[int]] = defaultdict(list)
    for each in found:
        by_key[each.key() and each.key().decode()].append(int(each.value()))
    return dict(by_key)


def kinds(results: Sequence[Exception | None]) -> list[type]:
    return [type(result) for result in results]


def in_time(call: Callable[[], Any]) -> Any:
    """Return what a call returns, and fail if it hangs."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(call()), daemon=True)
    thread.start()
    thread.join(WAIT)
    assert outcome, "it hangs, or has raised"
    return outcome[0]


Nothing = type(None)


# --- what arrives ----------------------------------------------------------------------------------------------


def test_message_arrives_as_it_was_sent(open_broker: Open, kafka: servers.Kafka, topic: str) -> None:
    """Bytes untouched, text as UTF-8, and what it is told by headers."""
    sent = Message(
        "order_placed",
        topic,
        {"not": "this"},
        payload_bytes=b"\x00\xff{",
        content_type="application/x-own",
        headers={"traceparent": "00-ü", "message-id": "not this"},
        key="köln",
    )
    open_broker().send_message(sent)
    [found] = servers.read(kafka.address, topic)
    assert (found.value(), found.key()) == (b"\x00\xff{", "köln".encode())
    assert sorted(found.headers()) == [
        ("content-type", b"application/x-own"),
        ("message-id", str(sent.message_id).encode()),
        ("message-name", b"order_placed"),
        ("traceparent", "00-ü".encode()),
    ]


def test_message_without_bytes_arrives_as_json_of_its_payload(
    open_broker: Open, kafka: servers.Kafka, topic: str
) -> None:
    """And without a key or a content type where there is none."""
    open_broker().send_message(Message("n", topic, {"a": [1]}))
    [found] = servers.read(kafka.address, topic)
    assert (found.value(), found.key()) == (b'{"a":[1]}', None)
    assert [name for name, _ in found.headers()] == ["message-id", "message-name"]


def test_messages_of_a_key_arrive_in_order_on_one_partition(
    open_broker: Open, kafka: servers.Kafka, topic: str
) -> None:
    """In several batches, on a topic with several partitions."""
    servers.create(kafka, topic, partitions=4)
    broker = open_broker()
    sent = [message(topic, number, key=f"k{number % 7}", size=500) for number in range(1400)]
    for start in range(0, 1400, 700):
        assert not any(broker.send_messages(sent[start : start + 700]))
    found = servers.read(kafka.address, topic)
    assert numbers(found) == {f"k{key}": list(range(key, 1400, 7)) for key in range(7)}
    assert len({each.partition() for each in found}) > 1


def test_both_clients_put_a_key_on_the_same_partition(kafka: servers.Kafka, topic: str) -> None:
    """Otherwise changing the client would break the order of keys."""
    servers.create(kafka, topic, partitions=16)
    for adapter in (KafkaProducerAdapter, ConfluentProducerAdapter):
        with KafkaMessageBroker(adapter(kafka.address)) as broker:
            assert not any(broker.send_messages([message(topic, key=f"k{key}") for key in range(50)]))
    partitions: defaultdict[bytes, set[int]] = defaultdict(set)
    for each in servers.read(kafka.address, topic):
        partitions[each.key()].add(each.partition())
    assert {len(found) for found in partitions.values()} == {1}
    assert len(partitions) == 50


def test_compressed_messages_take_less_room_and_arrive_whole(
    open_broker: Open, local: servers.LocalKafka, topic: str
) -> None:
    """Both clients have gzip."""
    servers.create(local, topic)
    open_broker(compression_type="gzip").send_message(message(topic, size=200_000))
    [found] = servers.read(local.address, topic)
    assert len(found.value()) == 200_001
    assert sum(log.stat().st_size for log in local.logs(topic)) < 20_000


def test_threads_share_a_broker(open_broker: Open, kafka: servers.Kafka, topic: str) -> None:
    """Each keeps the order of its own messages."""
    broker = open_broker()
    failures: list[Any] = []
    start = threading.Barrier(8)

    def send(key: str) -> None:
        start.wait(WAIT)
        for number in range(0, 60, 2):
            failures.extend(filter(None, broker.send_messages([message(topic, number + each, key) for each in (0, 1)])))

    threads = [threading.Thread(target=send, args=(f"k{key}",)) for key in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures
    assert numbers(servers.read(kafka.address, topic)) == {f"k{key}": list(range(60)) for key in range(8)}


# --- what is refused -------------------------------------------------------------------------------------------


def test_message_too_large_for_the_client_is_rejected_and_its_key_waits(
    open_broker: Open, kafka: servers.Kafka, topic: str
) -> None:
    """The others go."""
    sent = [message(topic, 0, "a"), message(topic, 1, "a", size=2_000_000), message(topic, 2, "a"), message(topic, 3)]
    results = open_broker().send_messages(sent)
    assert kinds(results) == [Nothing, MessageRejected, MessageHeldBack, Nothing]
    assert results[1] is not None
    assert results[1].message is sent[1]  # type: ignore[attr-defined]
    assert numbers(servers.read(kafka.address, topic)) == {"a": [0], None: [3]}


def test_message_too_large_for_the_topic_is_rejected_alone(open_broker: Open, kafka: servers.Kafka, topic: str) -> None:
    """Kafka refuses whole batches; those that were only in its company go."""
    servers.create(kafka, topic, max_message_bytes="2000")
    sent = [message(topic, number, f"k{number}", size=5000 if number == 7 else 300) for number in range(20)]
    results = open_broker().send_messages(sent)
    assert [index for index, result in enumerate(results) if result is not None] == [7]
    assert isinstance(results[7], MessageRejected)
    assert numbers(servers.read(kafka.address, topic)) == {f"k{n}": [n] for n in range(20) if n != 7}


def test_one_in_flight_per_key_sends_nothing_behind_a_message_that_kafka_rejects(
    open_broker: Open, kafka: servers.Kafka, topic: str
) -> None:
    """In rounds, so that this holds although only Kafka knows."""
    servers.create(kafka, topic, max_message_bytes="2000")
    sent = [message(topic, number, "ab"[number % 2], size=5000 if number == 2 else 0) for number in range(6)]
    results = open_broker(one_in_flight_per_key=True).send_messages(sent)
    assert [type(result).__name__ for result in results] == [
        *["NoneType", "NoneType"],
        *["BatchRejected", "NoneType"],
        *["MessageHeldBack", "NoneType"],
    ]
    assert numbers(servers.read(kafka.address, topic)) == {"a": [0], "b": [1, 3, 5]}


def test_message_for_a_forbidden_topic_is_rejected(open_broker: Open, kafka: servers.Kafka, topic: str) -> None:
    """It is not the broker that is in trouble."""
    servers.forbid(kafka, f"{topic}-forbidden")
    broker = open_broker()
    sent = [message(f"{topic}-forbidden", 0, "a"), message(topic, 1, "b"), message(f"{topic}-forbidden", 2, "c")]
    assert [result is None for result in broker.send_messages(sent)] == [False, True, False]
    with pytest.raises(MessageRejected, match="numbered for topic"):
        broker.send_message(sent[0])
    assert numbers(servers.read(kafka.address, topic)) == {"b": [1]}


def test_message_for_an_invalid_topic_is_rejected(open_broker: Open) -> None:
    """Nobody will ever create it."""
    with pytest.raises(MessageRejected):
        open_broker().send_message(message("no topic!"))


@pytest.fixture(scope="module")
def strict_kafka() -> Iterator[servers.LocalKafka]:
    """A Kafka that creates no topics on demand."""
    if "CQRS_TEST_KAFKA" in os.environ:
        pytest.skip("the Kafka of CQRS_TEST_KAFKA may create topics on demand")
    with servers.real({"auto.create.topics.enable": "false"}) as found:
        assert isinstance(found, servers.LocalKafka)
        yield found


def test_unknown_topic_is_a_rejection_where_none_are_created_on_demand(
    open_broker: Open, strict_kafka: servers.LocalKafka, topic: str
) -> None:
    """It must not keep the others waiting for ever; the same broker finds it once it is created."""
    servers.create(strict_kafka, f"{topic}-known")
    broker = open_broker(servers=strict_kafka.address, timeout=SHORT)
    results = broker.send_messages([message(topic, 0), message(f"{topic}-known", 1), message(topic, 2, "a")])
    assert kinds(results) == [MessageRejected, Nothing, MessageRejected]
    servers.create(strict_kafka, topic)
    eventually_sends(broker, message(topic, 3))


# --- who may -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [kafka_producer_factory, confluent_producer_factory])
def test_factory_authenticates(factory: Any, local: servers.LocalKafka, topic: str) -> None:
    """With SASL PLAIN."""
    producer = factory(local.sasl_address, "SASL_PLAINTEXT", user=servers.USER, password=servers.PASSWORD)
    with KafkaMessageBroker(producer) as broker:
        broker.send_message(message(topic, 1))
    assert numbers(servers.read(local.address, topic)) == {None: [1]}


@pytest.mark.parametrize("factory", [kafka_producer_factory, confluent_producer_factory])
def test_wrong_password_is_an_outage_that_names_the_servers_and_the_remedy(
    factory: Any, local: servers.LocalKafka, topic: str
) -> None:
    """Not the message's fault, and it may pass."""
    producer = factory(local.sasl_address, "SASL_PLAINTEXT", user=servers.USER, password="wrong", timeout=SHORT)
    with KafkaMessageBroker(producer) as broker, pytest.raises(BrokerUnavailable) as caught:
        broker.send_message(message(topic))
    assert local.sasl_address in str(caught.value)
    assert "password" in str(caught.value)


# --- outages -----------------------------------------------------------------------------------------------------


def eventually_sends(broker: KafkaMessageBroker, *messages: Message) -> None:
    """A Kafka that has just started may still look for its leaders."""
    for _ in range(10):
        if not any(results := broker.send_messages(messages)):
            return
    raise AssertionError(results)


def test_broker_that_was_killed_is_unavailable_and_comes_back(
    open_broker: Open, local: servers.LocalKafka, topic: str
) -> None:
    """For the same object, twice, with connections that were in use and with none."""
    broker = open_broker(timeout=SHORT)
    broker.send_message(message(topic, 0, "a"))
    with local.away():
        for number in (1, 2):
            results = in_time(lambda n=number: broker.send_messages([message(topic, n, "a"), message(topic, n)]))
            assert kinds(results) == [BrokerUnavailable, BrokerUnavailable]
            assert local.address in str(results[0])
    eventually_sends(broker, message(topic, 3, "a"))
    assert numbers(servers.read(local.address, topic)) == {"a": [0, 3]}


def test_broker_that_freezes_leaves_an_unknown_outcome_and_keeps_the_order(
    open_broker: Open, local: servers.LocalKafka, topic: str
) -> None:
    """What was under way may arrive, and arrive twice, but never behind what follows it."""
    broker = open_broker(timeout=SHORT)
    broker.send_message(message(topic, 0, "a"))
    with local.paused():
        results = in_time(lambda: broker.send_messages([message(topic, number, "a") for number in (1, 2)]))
        assert kinds(results) == [BrokerUnavailable, BrokerUnavailable]
    eventually_sends(broker, *[message(topic, number, "a") for number in (1, 2)])
    broker.send_message(message(topic, 3, "a"))
    found = numbers(servers.read(local.address, topic))["a"]
    assert list(dict.fromkeys(found)) == [0, 1, 2, 3]
    assert found[-3:] == [1, 2, 3]


def test_first_connection_to_a_frozen_broker_is_given_up_in_time(
    open_broker: Open, local: servers.LocalKafka, topic: str
) -> None:
    """It accepts connections and says nothing."""
    broker = open_broker(timeout=SHORT)
    with local.paused():
        assert kinds(in_time(lambda: broker.send_messages([message(topic)]))) == [BrokerUnavailable]
    eventually_sends(broker, message(topic))


def test_close_does_not_wait_for_what_cannot_be_sent(open_broker: Open, local: servers.LocalKafka, topic: str) -> None:
    """The thread that sends ends with its timeout."""
    broker = open_broker(timeout=SHORT)
    eventually_sends(broker, message(topic))
    with local.paused():
        results: list[Any] = []
        sender = threading.Thread(target=lambda: results.extend(broker.send_messages([message(topic)] * 10)))
        sender.start()
        in_time(lambda: broker.close() or True)
        sender.join(WAIT)
    assert not sender.is_alive()
    assert kinds(results) == [BrokerUnavailable] * 10


def test_broker_that_nobody_closed_warns_and_lets_go(adapter: Adapter, kafka: servers.Kafka, topic: str) -> None:
    """Only if it ever had a connection."""
    adapter(kafka.address)
    brokers = [KafkaMessageBroker(adapter(kafka.address))]
    brokers[0].send_message(message(topic))
    with pytest.warns(ResourceWarning, match=f"{adapter.__name__} {kafka.address}> was not closed"):
        brokers.clear()


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the point of this
from {module} import {name} as Adapter
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from tests.integration.test_kafka import message

address, topic = sys.argv[1:]
broker = KafkaMessageBroker(Adapter(address))
broker.send_message(message(topic, 0, "a"))
child = os.fork()
if child == 0:
    broker.send_message(message(topic, 1, "a"))
    broker.close()
    del broker
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
broker.send_message(message(topic, 2, "a"))
broker.close()
"""


def test_forked_child_builds_a_client_of_its_own(adapter: Adapter, kafka: servers.Kafka, topic: str) -> None:
    """And leaves its parent's alone, which goes on."""
    program = FORK.format(module=adapter.__module__, name=adapter.__name__)
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", program, kafka.address, topic]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert numbers(servers.read(kafka.address, topic)) == {"a": [0, 1, 2]}
