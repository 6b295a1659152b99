"""What the Kafka broker makes of its producer's results."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageHeldBack, MessageRejected
from cqrs_sync.message_brokers.kafka import BatchRejected, KafkaMessageBroker, KafkaProducer, record_of
from cqrs_sync.message_brokers.protocol import Message

Answer = Callable[[Message, Sequence[Message]], Exception | None]


class Scripted(KafkaProducer):
    """A producer that notes each call, and answers as a function of a message and its company says."""

    timeout = 5.0

    def __init__(self, answer: Answer = lambda message, company: None) -> None:
        self.answer = answer
        self.calls: list[str] = []
        self.timeouts: list[float] = []
        self.closed = 0

    def send(self, messages: Sequence[Message], timeout: float) -> list[Exception | None]:
        self.calls.append(" ".join(message.message_name for message in messages))
        self.timeouts.append(timeout)
        return [self.answer(message, messages) for message in messages]

    def close(self) -> None:
        self.closed += 1


def messages(names: str) -> list[Message]:
    """``a1 b1 -1``: messages of the keys a and b, and one without."""
    return [Message(name, "t", None, key=None if name[0] == "-" else name[0]) for name in names.split()]


def fails(**errors: type[Exception]) -> Answer:
    """Answer so for messages of these names."""

    def answer(message: Message, company: Sequence[Message]) -> Exception | None:
        error = errors.get(message.message_name.replace("-", "_"))
        return None if error is None else error(message) if error is MessageHeldBack else error("no", message)  # type: ignore[call-arg]

    return answer


def outcome(results: Sequence[Exception | None]) -> str:
    """One letter each: acknowledged, rejected, held back, unavailable."""
    letters: dict[type[Any], str] = {type(None): ".", MessageHeldBack: "h", BrokerUnavailable: "u"}
    return "".join(letters.get(type(result), "r") for result in results)


def test_only_a_producer_of_this_library_is_taken() -> None:
    """A client's own has other methods, which would show at the first message."""
    with pytest.raises(ConfigurationError, match=r"producer must be a KafkaProducer, not .*: pass a KafkaProducerAd"):
        KafkaMessageBroker(object())  # type: ignore[arg-type]


def test_all_messages_go_in_one_call() -> None:
    """With the producer's timeout, of which nothing has passed."""
    producer = Scripted()
    sent = messages("a1 a2 b1")
    assert KafkaMessageBroker(producer).send_messages(sent) == [None] * 3
    assert producer.calls == ["a1 a2 b1"]
    assert producer.timeouts == [pytest.approx(5.0, abs=1.0)]


def test_nothing_is_sent_for_no_messages() -> None:
    producer = Scripted()
    assert KafkaMessageBroker(producer).send_messages([]) == []
    assert producer.calls == []


def test_of_a_key_only_what_comes_before_an_outage_counts_as_sent() -> None:
    """What is behind it is sent again, in order; other keys, and messages without one, stay as they are."""
    producer = Scripted(fails(a2=BrokerUnavailable, _1=BrokerUnavailable))
    sent = messages("a1 a2 b1 a3 -1 -2 b2")
    results = KafkaMessageBroker(producer).send_messages(sent)
    assert outcome(results) == ".u.uu.."
    assert [result.message for result in results if result] == [sent[1], sent[3], sent[4]]  # type: ignore[attr-defined]


def test_rejection_behind_an_outage_of_its_key_does_not_count_yet() -> None:
    producer = Scripted(fails(a1=BrokerUnavailable, a2=MessageRejected))
    assert outcome(KafkaMessageBroker(producer).send_messages(messages("a1 a2"))) == "uu"


def test_what_arrived_behind_a_rejected_message_is_reported_as_sent() -> None:
    """All were under way; sending it again would double it."""
    producer = Scripted(fails(a1=MessageRejected, a3=BrokerUnavailable))
    assert outcome(KafkaMessageBroker(producer).send_messages(messages("a1 a2 a3 a4"))) == "r.uu"


def test_what_the_producer_held_back_stays_held_back() -> None:
    producer = Scripted(fails(a1=MessageRejected, a2=MessageHeldBack))
    assert outcome(KafkaMessageBroker(producer).send_messages(messages("a1 a2 b1"))) == "rh."


def test_members_of_a_refused_batch_are_sent_again_alone_and_in_order() -> None:
    """Kafka refuses batches; alone, each shows whether it was the cause."""

    def refuse_with_a2(message: Message, company: Sequence[Message]) -> Exception | None:
        cause = any(each.message_name == "a2" for each in company)
        return BatchRejected("no", message) if cause else None

    producer = Scripted(refuse_with_a2)
    results = KafkaMessageBroker(producer).send_messages(messages("a1 a2 b1 a3 -1"))
    assert outcome(results) == ".r.h."
    assert producer.calls == ["a1 a2 b1 a3 -1", "a1", "a2", "b1", "-1"]


def test_outage_while_sending_alone_stops_the_key() -> None:
    def answer(message: Message, company: Sequence[Message]) -> Exception | None:
        if len(company) > 1:
            return BatchRejected("no", message)
        return BrokerUnavailable("gone", message) if message.message_name == "a1" else None

    producer = Scripted(answer)
    assert outcome(KafkaMessageBroker(producer).send_messages(messages("a1 a2 b1"))) == "uu."
    assert producer.calls == ["a1 a2 b1", "a1", "b1"]


def test_a_message_refused_alone_is_not_sent_again() -> None:
    producer = Scripted(fails(a1=BatchRejected))
    with pytest.raises(MessageRejected):
        KafkaMessageBroker(producer).send_message(messages("a1")[0])
    assert producer.calls == ["a1"]


def test_one_in_flight_per_key_sends_in_rounds() -> None:
    """A round for the first of each key, one for the second, and so on; no key means no order."""
    producer = Scripted()
    broker = KafkaMessageBroker(producer, one_in_flight_per_key=True)
    assert outcome(broker.send_messages(messages("a1 a2 b1 -1 a3 -2 b2"))) == "......."
    assert producer.calls == ["a1 b1 -1 -2", "a2 b2", "a3"]


def test_one_in_flight_per_key_sends_nothing_behind_a_failure() -> None:
    producer = Scripted(fails(a1=MessageRejected, b2=BrokerUnavailable))
    broker = KafkaMessageBroker(producer, one_in_flight_per_key=True)
    results = broker.send_messages(messages("a1 a2 b1 b2 b3 c1 c2 c3"))
    assert outcome(results) == "rh.uu..."
    assert producer.calls == ["a1 b1 c1", "b2 c2", "c3"]
    assert isinstance(results[4], BrokerUnavailable)
    assert results[4].message.message_name == "b3"


def test_later_rounds_have_what_is_left_of_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of it once it is over."""
    clock = iter([100.0, 101.0, 109.0])
    monkeypatch.setattr("cqrs_sync.message_brokers.kafka.time.monotonic", lambda: next(clock))
    producer = Scripted()
    KafkaMessageBroker(producer, one_in_flight_per_key=True).send_messages(messages("a1 a2"))
    assert producer.timeouts == [4.0, 0.0]


def test_closing_the_broker_closes_its_producer() -> None:
    producer = Scripted()
    with KafkaMessageBroker(producer):
        assert producer.closed == 0
    assert producer.closed == 1


def test_record_has_the_bytes_of_the_message_and_tells_what_it_is() -> None:
    message_id = uuid.UUID(int=5)
    plain = Message("order_placed", "orders", {"a": 1}, message_id)
    identity = [("message-id", str(message_id).encode()), ("message-name", b"order_placed")]
    assert record_of(plain) == ("orders", b'{"a":1}', None, identity)
    full = Message(
        "order_placed",
        "orders",
        {"a": 1},
        message_id,
        b"\x00",
        "application/x-own",
        {"h": "ü", "message-name": "x"},
        "é",
    )
    assert record_of(full) == (
        "orders",
        b"\x00",
        "é".encode(),
        [*identity, ("content-type", b"application/x-own"), ("h", "ü".encode())],
    )


def test_own_serializer_makes_the_bytes_where_there_are_none() -> None:
    assert record_of(Message("n", "t", "p"), lambda payload: f"<{payload}>".encode())[1] == b"<p>"
    assert record_of(Message("n", "t", "p", payload_bytes=b""), lambda payload: b"other")[1] == b""


@pytest.mark.parametrize(
    "message",
    [Message("n", "t", object()), Message("n", "t", {}, headers={"h": 1}), Message("n", "t", {}, key="\ud800")],  # type: ignore[dict-item]
    ids=["payload", "header", "key"],
)
def test_message_that_cannot_be_expressed_in_bytes_is_rejected(message: Message) -> None:
    """It is the problem, whatever its serializer raises."""
    with pytest.raises(MessageRejected, match="n cannot be made a Kafka record") as caught:
        record_of(message)
    assert caught.value.message is message
    assert caught.value.__cause__ is not None
