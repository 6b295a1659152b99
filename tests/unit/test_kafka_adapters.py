"""Kafka producers without Kafka: options, errors, and how long a client lives."""

from __future__ import annotations

import gc
import importlib
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import confluent_kafka
import pytest
from kafka import errors
from kafka.future import Future

from cqrs_sync.adapters import confluent, kafka, shared_client
from cqrs_sync.adapters.confluent import ConfluentProducerAdapter, confluent_producer_factory
from cqrs_sync.adapters.kafka import KafkaProducerAdapter, kafka_producer_factory
from cqrs_sync.adapters.kafka_pipeline import PipeliningProducer
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageHeldBack, MessageRejected, NotInstalled
from cqrs_sync.message_brokers.kafka import BatchRejected, Record
from cqrs_sync.message_brokers.protocol import Message

WAIT = 30


def message(name: str = "n", topic: str = "t", key: str | None = None) -> Message:
    return Message(name, topic, None, payload_bytes=name.encode(), key=key)


# --- the life of a client, with one that does what a test says ---------------------------------------------------


class Trouble(Exception):
    """What this client raises."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code


class Client:
    """Refuses values that ``refuses`` names, answers others with an error of ``answers``, and takes the rest."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.given_up: list[bool] = []
        self.refuses: dict[bytes, Exception] = {}
        self.answers: dict[bytes, Exception] = {}


class Producer(PipeliningProducer[Client, bytes]):
    client_errors: ClassVar[tuple[type[Exception], ...]] = (Trouble,)

    def __init__(self, prepare: Callable[[Client], None] = lambda client: None) -> None:
        super().__init__("a:1,b:2", 5.0, None)
        self.prepare = prepare
        self.clients: list[Client] = []

    def _connect(self, timeout: float) -> Client:
        assert 0 <= timeout <= 5.0
        client = Client()
        self.prepare(client)
        self.clients.append(client)
        return client

    def _give_up(self, client: Client, orderly: bool) -> None:
        client.given_up.append(orderly)

    def _produce(self, client: Client, record: Record, deadline: float) -> bytes:
        value = record[1]
        if value in client.refuses:
            raise client.refuses[value]
        client.taken.append(value)
        return value

    def _outcomes(self, client: Client, tickets: Sequence[bytes], deadline: float) -> list[Exception | None]:
        return [client.answers.get(ticket) for ticket in tickets]

    def _code(self, error: BaseException | None) -> int | None:
        return error.code if isinstance(error, Trouble) else None


def test_client_is_built_on_first_use_and_kept() -> None:
    producer = Producer()
    assert producer.clients == []
    assert producer.send([message("1")], 5) == [None]
    assert producer.send([message("2"), message("3")], 5) == [None, None]
    assert [client.taken for client in producer.clients] == [[b"1", b"2", b"3"]]
    producer.close()
    assert producer.clients[0].given_up == [True]


def test_outcome_that_nobody_knows_ends_the_client() -> None:
    """The next call has a new one."""
    producer = Producer(lambda client: client.answers.update({b"2": Trouble()}))
    results = producer.send([message("1"), message("2")], 5)
    assert results[0] is None
    assert isinstance(results[1], BrokerUnavailable)
    assert producer.clients[0].given_up == [False]
    producer.send([message("3")], 5)
    assert [client.taken for client in producer.clients] == [[b"1", b"2"], [b"3"]]
    producer.close()
    assert [client.given_up for client in producer.clients] == [[False], [True]]


def test_unknown_topic_ends_the_client_too() -> None:
    """It would remember that it does not exist."""
    producer = Producer(lambda client: client.answers.update({b"1": Trouble(3)}))
    assert isinstance(producer.send([message("1")], 5)[0], MessageRejected)
    assert producer.clients[0].given_up == [False]


def test_rejection_leaves_the_client_alone() -> None:
    producer = Producer(lambda client: client.answers.update({b"1": Trouble(10), b"2": Trouble(29)}))
    assert [type(result) for result in producer.send([message("1"), message("2")], 5)] == [
        BatchRejected,
        MessageRejected,
    ]
    assert producer.clients[0].given_up == []
    producer.close()


def test_refusal_before_sending_holds_its_key() -> None:
    """And no other; what follows in its key never reaches the client."""
    producer = Producer(lambda client: client.refuses.update({b"a2": Trouble(10)}))
    with producer_closing(producer):
        results = producer.send([message(name, key=name[0]) for name in ("a1", "a2", "b1", "a3", "b2")], 5)
    assert [type(result) for result in results] == [
        type(None),
        MessageRejected,
        type(None),
        MessageHeldBack,
        type(None),
    ]
    assert producer.clients[0].taken == [b"a1", b"b1", b"b2"]


def test_topic_refused_before_sending_is_not_asked_for_again() -> None:
    """Finding out may take seconds, for each."""
    producer = Producer(lambda client: client.refuses.update({b"1": Trouble(29)}))
    with producer_closing(producer):
        results = producer.send([message("1"), message("2"), message("3", "other")], 5)
    assert [type(result) for result in results] == [MessageRejected, MessageRejected, type(None)]
    assert producer.clients[0].taken == [b"3"]


def test_outage_before_sending_stops_the_rest_and_awaits_what_is_under_way() -> None:
    producer = Producer(lambda client: client.refuses.update({b"2": Trouble()}))
    with producer_closing(producer):
        results = producer.send([message("1"), message("2"), message("3")], 5)
    assert [type(result) for result in results] == [type(None), BrokerUnavailable, BrokerUnavailable]
    assert producer.clients[0].taken == [b"1"]
    assert results[2].message.message_name == "3"  # type: ignore[union-attr]
    assert "a:1,b:2" in str(results[2])


def test_client_that_cannot_be_built_is_an_outage_for_every_message() -> None:
    def fail(client: Client) -> None:
        raise Trouble

    results = Producer(fail).send([message("1"), message("2")], 5)
    assert [type(result) for result in results] == [BrokerUnavailable] * 2


def test_bug_passes_through_and_ends_the_client() -> None:
    """Nobody knows what is under way."""
    producer = Producer(lambda client: client.refuses.update({b"2": ZeroDivisionError()}))
    with pytest.raises(ZeroDivisionError):
        producer.send([message("1"), message("2")], 5)
    assert producer.clients[0].given_up == [False]


@pytest.mark.parametrize("error", [TypeError(), ValueError()])
def test_value_that_the_client_cannot_take_is_rejected(error: Exception) -> None:
    producer = Producer(lambda client: client.refuses.update({b"1": error}))
    with producer_closing(producer):
        [result] = producer.send([message("1")], 5)
    assert type(result) is MessageRejected
    assert result.__cause__ is error


def test_client_that_others_still_use_ends_with_the_last_of_them() -> None:
    """One thread's outage does not abort another's sends; and whoever comes meanwhile has a new client."""
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Producer):
        def _outcomes(self, client: Client, tickets: Sequence[bytes], deadline: float) -> list[Exception | None]:
            if tickets == [b"slow"]:
                arrived.set()
                assert go_on.wait(WAIT)
            return super()._outcomes(client, tickets, deadline)

    producer = Slow(lambda client: client.answers.update({b"bad": Trouble()}))
    results: list[Any] = []
    slow = threading.Thread(target=lambda: results.extend(producer.send([message("slow")], 5)))
    slow.start()
    assert arrived.wait(WAIT)
    assert isinstance(producer.send([message("bad")], 5)[0], BrokerUnavailable)
    first = producer.clients[0]
    assert first.given_up == []
    assert producer.send([message("next")], 5) == [None]
    assert producer.clients[1].taken == [b"next"]
    go_on.set()
    slow.join(WAIT)
    assert results == [None]
    assert first.given_up == [False]
    producer.close()


def test_close_leaves_the_client_to_a_send_that_is_under_way() -> None:
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Producer):
        def _outcomes(self, client: Client, tickets: Sequence[bytes], deadline: float) -> list[Exception | None]:
            arrived.set()
            assert go_on.wait(WAIT)
            return super()._outcomes(client, tickets, deadline)

    producer = Slow()
    results: list[Any] = []
    slow = threading.Thread(target=lambda: results.extend(producer.send([message("slow")], 5)))
    slow.start()
    assert arrived.wait(WAIT)
    producer.close()
    assert producer.clients[0].given_up == []
    go_on.set()
    slow.join(WAIT)
    assert results == [None]
    assert len(producer.clients[0].given_up) == 1


def test_sending_after_close_is_an_outage_that_says_so() -> None:
    """A message in an outbox waits for the next process."""
    producer = Producer()
    producer.close()
    producer.close()
    [result] = producer.send([message()], 5)
    assert isinstance(result, BrokerUnavailable)
    assert "closed" in str(result)
    assert producer.clients == []


def test_close_while_a_client_is_built_ends_it_after_its_first_call() -> None:
    producer = Producer()
    producer.prepare = lambda client: producer.close()
    assert producer.send([message()], 5) == [None]
    assert producer.clients[0].given_up == [False]


def test_threads_build_one_client() -> None:
    start = threading.Barrier(8)
    producer = Producer(lambda client: time.sleep(0.05))

    def send() -> None:
        start.wait(WAIT)
        assert producer.send([message()], 5) == [None]

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert [len(client.taken) for client in producer.clients] == [8]
    producer.close()


def test_waiting_for_another_threads_connection_ends_with_the_timeout() -> None:
    building, go_on = threading.Event(), threading.Event()

    def build(client: Client) -> None:
        building.set()
        assert go_on.wait(WAIT)

    producer = Producer(build)
    first = threading.Thread(target=producer.send, args=([message("1")], 5))
    first.start()
    assert building.wait(WAIT)
    [result] = producer.send([message("2")], 0)
    assert isinstance(result, BrokerUnavailable)
    assert "another thread" in str(result)
    go_on.set()
    first.join(WAIT)
    producer.close()


def test_forgotten_producer_warns_if_it_had_a_client() -> None:
    """And gives the client up."""
    Producer()
    producers = [Producer()]
    producers[0].send([message()], 5)
    [client] = producers[0].clients
    with pytest.warns(ResourceWarning, match="Producer a:1,b:2> was not closed"):
        producers.clear()
    assert client.given_up == [False]


def test_other_process_builds_its_own_client_and_keeps_its_hands_off() -> None:
    """A fork is simulated by what runs in a child; the integration tests have a real one."""
    producers = [Producer()]
    producers[0].send([message("1")], 5)
    clients = producers[0].clients
    shared_client._forget_clients()
    producers[0].send([message("2")], 5)
    assert [client.taken for client in clients] == [[b"1"], [b"2"]]
    producers[0].close()
    producers.clear()
    gc.collect()
    assert [client.given_up for client in clients] == [[], [True]]


class producer_closing:  # noqa: N801
    """Closes a producer, however the block ends."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.producer.close()


# --- options -----------------------------------------------------------------------------------------------------


async def serialize_later(payload: Any) -> bytes:
    """What nobody would await."""
    return b""


@pytest.fixture
def given_to_kafka_python(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options that kafka-python was called with."""
    seen: list[dict[str, Any]] = []

    def build(options: dict[str, Any]) -> None:
        seen.append(options)
        raise errors.KafkaTimeoutError("no network")

    monkeypatch.setattr(kafka, "_Client", build)
    return seen


@pytest.fixture
def given_to_confluent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options that confluent-kafka was called with, to see whether it takes them."""
    seen: list[dict[str, Any]] = []

    def build(config: dict[str, Any]) -> object:
        seen.append(config)
        return object()

    monkeypatch.setattr(confluent, "Producer", build)
    return seen


def test_kafka_python_has_safe_defaults_within_the_timeout(given_to_kafka_python: list[dict[str, Any]]) -> None:
    adapter = KafkaProducerAdapter(["a:1", "b:2"], timeout=10)
    assert isinstance(adapter.send([message()], 10)[0], BrokerUnavailable)
    [options] = given_to_kafka_python
    assert options.pop("bootstrap_timeout_ms") == pytest.approx(10_000, abs=1000)
    assert options == {
        "bootstrap_servers": ["a:1", "b:2"],
        "acks": "all",
        "enable_idempotence": False,
        "max_in_flight_requests_per_connection": 1,
        "batch_size": 131072,
        "delivery_timeout_ms": 10_000,
        "request_timeout_ms": 5_000,
        "reconnect_backoff_max_ms": 1000,
        "max_block_ms": 1000,
    }


def test_confluent_has_safe_defaults_within_the_timeout(given_to_confluent: list[dict[str, Any]]) -> None:
    ConfluentProducerAdapter(["a:1", "b:2"], timeout=12)
    [config] = given_to_confluent
    assert config.pop("logger") is confluent.logger
    assert config == {
        "bootstrap.servers": "a:1,b:2",
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "message.timeout.ms": 12_000,
        "request.timeout.ms": 6_000,
        "socket.timeout.ms": 6_000,
        "topic.metadata.propagation.max.ms": 4_000,
        "reconnect.backoff.max.ms": 1000,
    }


def test_kafka_python_factory_maps_the_arguments_of_the_async_library(
    given_to_kafka_python: list[dict[str, Any]],
) -> None:
    context = ssl.create_default_context()
    adapter = kafka_producer_factory(
        "a:1, b:2", "SASL_SSL", "SCRAM-SHA-512", context, 7, 0.5, "u", "p", timeout=3, compression_type="gzip", acks=1
    )
    assert adapter.timeout == 3
    adapter.send([message()], 3)
    [options] = given_to_kafka_python
    expected = {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "ssl_context": context,
        "retries": 7,
        "retry_backoff_ms": 500,
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
        "compression_type": "gzip",
        "acks": 1,
        "delivery_timeout_ms": 3000,
    }
    assert {name: options[name] for name in expected} == expected


def test_confluent_factory_maps_the_same_arguments(given_to_confluent: list[dict[str, Any]]) -> None:
    adapter = confluent_producer_factory(
        "a:1, b:2",
        "SASL_SSL",
        "SCRAM-SHA-512",
        7,
        0.5,
        "u",
        "p",
        timeout=3,
        compression_type="zstd",
        acks=1,
        linger_ms=9,
    )
    assert adapter.timeout == 3
    [config] = given_to_confluent
    expected = {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "message.send.max.retries": 7,
        "retry.backoff.ms": 500,
        "sasl.username": "u",
        "sasl.password": "p",
        "compression.type": "zstd",
        "acks": 1,
        "enable.idempotence": False,
        "linger.ms": 9,
        "message.timeout.ms": 3000,
    }
    assert {name: config[name] for name in expected} == expected


def test_confluent_itself_takes_what_the_factory_maps() -> None:
    """TLS files included; nothing is connected."""
    confluent_producer_factory(
        "a:1", "SASL_SSL", "PLAIN", 7, 0.5, "u", "p", ssl_endpoint_identification_algorithm="none"
    )
    ConfluentProducerAdapter("a:1", compression_type="zstd", linger_ms=3, error_cb=print, log_level=3)


@pytest.mark.parametrize("adapter", [KafkaProducerAdapter, ConfluentProducerAdapter])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bootstrap_servers": []}, r"bootstrap_servers is \[\]"),
        ({"bootstrap_servers": " , "}, "bootstrap_servers is ' , '"),
        ({"bootstrap_servers": "kafka://a:1"}, "leave out what is before the host, as in .'localhost:9092'"),
        ({"bootstrap_servers": ["a:1", "SSL://b:1"]}, "leave out what is before the host"),
        ({"bootstrap_servers": None}, "bootstrap_servers is None: name at least one"),
        ({"bootstrap_servers": [b"a:1"]}, r"bootstrap_servers is \[b'a:1'\]"),
        ({"bootstrap_servers": "a:1,b:kafka"}, "bootstrap_servers has 'b:kafka': give a host and a number"),
        ({"bootstrap_servers": ":9092"}, "bootstrap_servers has ':9092'"),
        ({"timeout": 0}, "timeout must be more than 0 .*, not 0"),
        ({"timeout": float("inf")}, "timeout must be .*, not inf"),
        ({"timeout": "30"}, "timeout must be a number of seconds .*, not '30'"),
        ({"value_serializer": 5}, "value_serializer must be a function"),
        ({"value_serializer": serialize_later}, "value_serializer serialize_later is async"),
        ({"timeout": 3, "linger_ms": 5000}, r"linger.ms"),
        ({"linger_ms": None}, "linger_ms|queue.buffering.max.ms"),  # librdkafka's older name
        ({"enable_idempotence": "perhaps"}, "enable.idempotence"),
        ({"transactional_id": "t"}, "transactional_id"),
        ({"nonsense_option": 1}, r"nonsense.option"),
        ({"acks": 0}, "acks is 0"),
        ({"acks": "0 "}, "acks is '?0 '?: use 'all'"),
        ({"compression_type": "rar"}, "rar"),
        ({"security_protocol": "TELEPATHY"}, "(?i)security.protocol"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, r"sasl.\w*username"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-512"}, "SCRAM-512"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_mistake_is_found_when_the_adapter_is_made(adapter: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        adapter(**{"bootstrap_servers": "a:1"} | options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"enable_idempotence": True}, "enable_idempotence"),
        ({"bootstrap_timeout_ms": 5, "kafka_client": None}, "no option bootstrap_timeout_ms, kafka_client that"),
    ],
)
def test_kafka_python_option_that_the_adapter_depends_on_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        KafkaProducerAdapter("a:1", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"security_protocol": "SASL_PLAINTEXT"}, "needs a sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "needs sasl_oauth_token_provider"),
        ({"security_protocol": None}, "security_protocol is None: use a text"),
        ({"security_protocol": "SSL", "ssl_cafile": "/no/such.pem"}, "ssl_cafile is '/no/such.pem': there is no such"),
        ({"security_protocol": "SSL", "ssl_keyfile": 5}, "ssl_keyfile is 5"),
        ({"client_id": 5}, "client_id is 5: use a text"),
        ({"ssl_check_hostname": "no"}, "ssl_check_hostname is 'no': use True or False"),
        ({"batch_size": "1000"}, "batch_size is '1000': use a number"),
        ({"retries": True}, "retries is True: use a number"),
        ({"linger_ms": -1}, "linger_ms is -1: use a number"),
        ({"compression_type": ["gzip"]}, r"compression_type is \['gzip'\]: use one of"),
        (
            {"timeout": 10, "linger_ms": 6000},
            r"delivery_timeout_ms \(10000, from timeout\) is less than linger_ms \(6000\) and request_timeout_ms",
        ),
        ({"timeout": 1, "request_timeout_ms": 100_000}, "delivery_timeout_ms"),
    ],
)
def test_kafka_python_option_that_it_would_refuse_late_is_refused_at_once(options: dict[str, Any], named: str) -> None:
    """Or never: what kafka-python cannot connect with looks like a broker that is away."""
    with pytest.raises(ConfigurationError, match=named):
        KafkaProducerAdapter("a:1", **options)


def test_codec_without_its_package_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kafka.CODECS, "zstd", lambda: False)
    with pytest.raises(ConfigurationError, match=r"kafka-python\[zstd\]"):
        KafkaProducerAdapter("a:1", compression_type="zstd")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"compression_type": "zstd", "api_version": (1, 0)}, "Zstd Requires"), ({"metric_reporters": 5}, "not iterable")],
)
def test_value_that_only_kafka_python_can_judge_is_a_mistake_at_the_first_send(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], named: str
) -> None:
    """It checks its options late."""
    monkeypatch.setitem(kafka.CODECS, "zstd", lambda: True)
    adapter = KafkaProducerAdapter("a:1", timeout=1, **options)
    with pytest.raises(ConfigurationError, match=f"kafka-python refuses these options: .*{named}"):
        adapter.send([message()], 1)


@pytest.mark.parametrize("adapter", [KafkaProducerAdapter, ConfluentProducerAdapter])
@pytest.mark.parametrize("servers", ["a", "a:1, b", "[::1]:9092", "::1", ["fe80::abcd"]])
def test_servers_may_be_names_and_addresses(adapter: Any, servers: Any) -> None:
    adapter(servers).close()


def test_kafka_python_takes_the_options_that_it_documents(tmp_path: Path) -> None:
    """Files that exist, mechanisms that need no password, any number."""
    authorities = tmp_path / "ca.pem"
    authorities.touch()
    options: dict[str, Any] = {
        "sasl_mechanism": "GSSAPI",
        "ssl_cafile": authorities,
        "ssl_certfile": None,
        "client_id": None,
    }
    numbers: dict[str, Any] = {"linger_ms": 5, "retries": float("inf"), "send_buffer_bytes": None}
    KafkaProducerAdapter("a:1", security_protocol="SASL_SSL", **options, **numbers).close()


@pytest.mark.parametrize("factory", [kafka_producer_factory, confluent_producer_factory])
def test_credentials_without_sasl_are_a_mistake(factory: Any) -> None:
    """They would be sent nowhere."""
    with pytest.raises(ConfigurationError, match="SASL_SSL"):
        factory("a:1", user="u", password="p")


@pytest.mark.parametrize(
    ("module", "client", "extra"),
    [("cqrs_sync.adapters.kafka", "kafka", "kafka"), ("cqrs_sync.adapters.confluent", "confluent_kafka", "confluent")],
)
def test_import_without_the_client_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, client: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, client, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(NotInstalled, match=rf"cqrs-sync\[{extra}\]") as caught:
        importlib.import_module(module)
    assert caught.value.feature == module


# --- errors ------------------------------------------------------------------------------------------------------


class KafkaPythonStub:
    """Knows every topic, and fails what it sends."""

    error: Exception

    def __init__(self, options: dict[str, Any]) -> None:
        self.closed: list[float] = []

    def know(self, *_: object) -> None:
        pass

    def send(self, *_: object) -> Any:
        return Future()

    def close(self, timeout: float) -> None:
        self.closed.append(timeout)


def kafka_python_outcome(monkeypatch: pytest.MonkeyPatch, error: Exception, *, at_once: bool = False) -> Any:
    """What becomes of a message that kafka-python fails, at once or when it is waited for."""

    class Failing(Future):
        __slots__ = ()

        def get(self, timeout: float) -> None:
            raise error

    def send(*_: object) -> Any:
        return Future().failure(error) if at_once else Failing()

    monkeypatch.setattr(KafkaPythonStub, "send", send)
    monkeypatch.setattr(kafka, "_Client", KafkaPythonStub)
    adapter = KafkaProducerAdapter("a:1")
    [result] = adapter.send([message()], 5)
    adapter.close()
    return result


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.MessageSizeTooLargeError(), BatchRejected),
        (errors.RecordListTooLargeError(), BatchRejected),
        (errors.InvalidRecordError(), BatchRejected),
        (errors.InvalidTimestampError(), BatchRejected),
        (errors.TopicAuthorizationFailedError(), MessageRejected),
        (errors.InvalidTopicError(), MessageRejected),
        (errors.UnknownTopicOrPartitionError(), MessageRejected),
        (errors.KafkaTimeoutError(), BrokerUnavailable),
        (errors.KafkaConnectionError(), BrokerUnavailable),
        (errors.NotLeaderForPartitionError(), BrokerUnavailable),
        (errors.NotEnoughReplicasError(), BrokerUnavailable),
        (errors.ClusterAuthorizationFailedError(), BrokerUnavailable),
        (errors.SaslAuthenticationFailedError(), BrokerUnavailable),
        (errors.UnknownError(), BrokerUnavailable),
        (errors.IllegalStateError(), BrokerUnavailable),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Exception) else "",
)
def test_kafka_python_error_is_told_by_its_class(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    result = kafka_python_outcome(monkeypatch, error)
    assert type(result) is kind
    assert result.__cause__ is error


def test_kafka_python_error_before_sending_is_about_the_message_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no batch yet."""
    assert type(kafka_python_outcome(monkeypatch, errors.MessageSizeTooLargeError(), at_once=True)) is MessageRejected


def test_kafka_python_wait_that_ends_without_an_outcome_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 3.0.0 returns from its wait at the deadline."""

    class Returning(Future):
        __slots__ = ()

        def get(self, timeout: float) -> None:
            pass

    monkeypatch.setattr(KafkaPythonStub, "send", lambda *_: Returning())
    monkeypatch.setattr(kafka, "_Client", KafkaPythonStub)
    [result] = KafkaProducerAdapter("a:1").send([message()], 5)
    assert isinstance(result, BrokerUnavailable)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MSG_SIZE_TOO_LARGE", BatchRejected),
        ("INVALID_RECORD", BatchRejected),
        ("_INVALID_DIFFERENT_RECORD", BatchRejected),
        ("TOPIC_AUTHORIZATION_FAILED", MessageRejected),
        ("TOPIC_EXCEPTION", MessageRejected),
        ("UNKNOWN_TOPIC_OR_PART", MessageRejected),
        ("_UNKNOWN_TOPIC", MessageRejected),
        ("_UNKNOWN_PARTITION", MessageRejected),
        ("_MSG_TIMED_OUT", BrokerUnavailable),
        ("_PURGE_INFLIGHT", BrokerUnavailable),
        ("_TRANSPORT", BrokerUnavailable),
        ("_FATAL", BrokerUnavailable),
        ("NOT_ENOUGH_REPLICAS", BrokerUnavailable),
        ("SASL_AUTHENTICATION_FAILED", BrokerUnavailable),
    ],
)
def test_confluent_error_is_told_by_its_code(monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception]) -> None:
    code = getattr(confluent_kafka.KafkaError, name)
    producer = ConfluentStub(lambda report: report(confluent_kafka.KafkaError(code), None))
    monkeypatch.setattr(confluent, "Producer", lambda config: producer)
    adapter = ConfluentProducerAdapter("a:1")
    [result] = adapter.send([message()], 5)
    adapter.close()
    assert type(result) is kind
    assert producer.purged == 1


class ConfluentStub:
    """Does something with the report of each message when it is polled."""

    def __init__(self, then: Callable[[Any], None], room: int = 1000) -> None:
        self.then = then
        self.room = room
        self.reports: list[Any] = []
        self.purged = 0

    def produce(self, *_: object, on_delivery: Any, headers: Any) -> None:
        if len(self.reports) >= self.room:
            raise BufferError
        self.reports.append(on_delivery)

    def flush(self, timeout: float) -> int:
        return len(self.reports)

    def poll(self, timeout: float) -> None:
        reports, self.reports = self.reports, []
        for report in reports:
            self.then(report)

    def purge(self) -> None:
        self.purged += 1


def test_full_queue_of_confluent_makes_room_by_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages than it holds."""
    producer = ConfluentStub(lambda report: report(None, None), room=2)
    monkeypatch.setattr(confluent, "Producer", lambda config: producer)
    adapter = ConfluentProducerAdapter("a:1")
    assert adapter.send([message()] * 7, 5) == [None] * 7
    adapter.close()


def test_full_queue_of_confluent_that_stays_full_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = ConfluentStub(lambda report: None, room=0)
    monkeypatch.setattr(confluent, "Producer", lambda config: producer)
    [result] = ConfluentProducerAdapter("a:1").send([message()], 0)
    assert isinstance(result, BrokerUnavailable)
    assert isinstance(result.__cause__, BufferError)


def test_report_that_does_not_come_is_an_outage_that_tells_of_the_last_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message's own error only says that time was up; and a callback of the user's hears of it, too."""
    heard: list[Any] = []
    refused = confluent_kafka.KafkaError(confluent_kafka.KafkaError._TRANSPORT, "connection refused")
    configs: list[dict[str, Any]] = []

    def build(config: dict[str, Any]) -> ConfluentStub:
        configs.append(config)
        return ConfluentStub(lambda report: config["error_cb"](refused))

    monkeypatch.setattr(confluent, "Producer", build)
    adapter = ConfluentProducerAdapter("a:1", error_cb=heard.append)
    [result] = adapter.send([message()], 0.05)
    assert isinstance(result, BrokerUnavailable)
    assert "connection refused" in str(result)
    assert heard[0] is refused


def test_threads_take_delivery_reports_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One polls at a time; whose report another one took is woken up."""

    class Scarce(ConfluentStub):
        """Gives out one report for each poll, the latest first, and fails when two poll at once."""

        polling = threading.Lock()

        def poll(self, timeout: float) -> None:
            assert self.polling.acquire(blocking=False)
            time.sleep(0.001)
            if self.reports:
                self.reports.pop()(None, None)
            self.polling.release()

    producer = Scarce(lambda report: None)
    monkeypatch.setattr(confluent, "Producer", lambda config: producer)
    adapter = ConfluentProducerAdapter("a:1")
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.extend(adapter.send([message()] * 5, WAIT))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    adapter.close()
    assert results == [None] * 30
