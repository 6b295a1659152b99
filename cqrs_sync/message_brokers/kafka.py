"""Kafka as a message broker; the client behind it comes from :mod:`cqrs_sync.adapters`."""

from __future__ import annotations

import abc
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cqrs_sync.checks import require_instance
from cqrs_sync.message_brokers.protocol import (
    BrokerUnavailable,
    Message,
    MessageBroker,
    MessageHeldBack,
    MessageRejected,
)
from cqrs_sync.serializers.default import encode_json

ValueSerializer = Callable[[Any], bytes]


Record = tuple[str, bytes, bytes | None, list[tuple[str, bytes]]]
"""A topic, a value, a key and headers. A plain tuple, because a named one takes a third of the time of making it."""


def record_of(message: Message, serialize: ValueSerializer = encode_json) -> Record:
    """Return a message as Kafka takes it: its bytes untouched, or else what ``serialize`` makes of its payload.

    The headers ``message-id``, ``message-name`` and, where it is known, ``content-type`` tell a consumer what the
    message is without decoding it; a header of the message's own under one of these names is left out. Text is UTF-8.

    Raises:
        MessageRejected: a part of it cannot be expressed in bytes.
    """
    try:
        value = message.payload_bytes
        if value is None:
            value = serialize(message.payload)
        headers: list[tuple[str, bytes]] = [
            ("message-id", str(message.message_id).encode()),
            ("message-name", message.message_name.encode()),
        ]
        if message.content_type is not None:
            headers.append(("content-type", message.content_type.encode()))
        if message.headers:
            taken = {name for name, _ in headers}
            headers += [(name, text.encode()) for name, text in message.headers.items() if name not in taken]
        return message.topic, value, None if message.key is None else message.key.encode(), headers
    except Exception as error:  # a serializer is anybody's code
        raise MessageRejected(f"{message.message_name} cannot be made a Kafka record: {error!r}", message) from error


class BatchRejected(MessageRejected):
    """Kafka refused the batch this message travelled in, because of it or of one of its company."""


class KafkaProducer(abc.ABC):
    """Puts messages into Kafka: the port below :class:`KafkaMessageBroker`. Thread-safe.

    Attributes:
        timeout: the seconds one ``send_messages`` may take.
    """

    timeout: float

    @abc.abstractmethod
    def send(self, messages: Sequence[Message], timeout: float) -> list[Exception | None]:
        """Send all messages at once, wait up to ``timeout`` seconds, and return one result for each.

        None means that Kafka has it. ``MessageRejected``: the client refused it before it was sent, or Kafka did;
        ``BatchRejected`` if Kafka refused the whole batch, so that the message alone may still go. What follows in
        its key after a message that was refused before sending is not sent: ``MessageHeldBack``. Any other outcome
        is ``BrokerUnavailable``: such messages are given up, but what is on its way may still arrive.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give back connections, within about a second. Calling it twice is harmless."""


class KafkaMessageBroker(MessageBroker):
    """Sends messages to Kafka through a producer, which it closes with itself.

    Messages of one key go to one partition, in order. Each is delivered at least once: what is ``BrokerUnavailable``
    because nobody answered in time may be there all the same, and is there twice when it is sent again.

    All messages of a ``send_messages`` are under way at the same time. So when Kafka itself refuses one (a client
    refuses most before sending), later ones of its key may be there already. ``one_in_flight_per_key=True`` sends a
    message only after the one before it in its key is acknowledged, in as many rounds as the longest key has messages.
    """

    def __init__(self, producer: KafkaProducer, *, one_in_flight_per_key: bool = False) -> None:
        require_instance(producer, KafkaProducer, "producer", "pass a KafkaProducerAdapter or ConfluentProducerAdapter")
        self._producer = producer
        self._plan = _rounds if one_in_flight_per_key else _at_once

    def send_message(self, message: Message) -> None:
        """Send one message and return once Kafka has it.

        Raises:
            BrokerUnavailable: it did not get there within the producer's timeout, or nobody knows.
            MessageRejected: it is too large, its topic is unknown or forbidden, or it cannot be serialized.
        """
        [result] = self.send_messages([message])
        if result is not None:
            raise result

    def send_messages(self, messages: Sequence[Message]) -> list[Exception | None]:
        """Send several messages within one timeout for all, and return one result for each.

        As the port has it, except that keys do not wait for one another: behind the first ``BrokerUnavailable`` of a
        key everything of that key has this result, even what is there, so that sending these again keeps their order;
        other keys, and messages without a key, have results of their own.
        """
        call = _Call(self._producer, messages)
        for indices in self._plan(messages):
            call.send(indices)
        return call.results

    def close(self) -> None:
        """Close the producer."""
        self._producer.close()


class _Call:
    """One ``send_messages``: what has become of each message so far."""

    def __init__(self, producer: KafkaProducer, messages: Sequence[Message]) -> None:
        self._producer = producer
        self._messages = messages
        self._deadline = time.monotonic() + producer.timeout
        self._stopped: dict[str, Exception] = {}  # by key: what its later messages wait for
        self.results: list[Exception | None] = [None] * len(messages)

    def send(self, indices: Iterable[int]) -> None:
        """Send these messages, in company, except those of keys that have stopped."""
        company = []
        for index in indices:
            held = self._held(self._messages[index]) if self._stopped else None
            if held is None:
                company.append(index)
            else:
                self.results[index] = held
        results = self._hand_over(company)
        if not any(results):
            return
        for index, result in zip(company, results, strict=True):
            self.results[index] = self._settle(index, result, alone=len(company) == 1)

    def _settle(self, index: int, result: Exception | None, *, alone: bool) -> Exception | None:
        """Return what is reported, given what became of the earlier messages of its key."""
        message = self._messages[index]
        held = self._held(message)
        if isinstance(held, BrokerUnavailable):
            return held
        if isinstance(result, BatchRejected) and not alone:
            # Kafka refuses batches, not messages: alone, each shows whether it was the cause.
            if held:
                return held
            [result] = self._hand_over([index])
        if message.key is not None and isinstance(result, MessageRejected | BrokerUnavailable):
            self._stopped[message.key] = result
        return result

    def _hand_over(self, indices: Sequence[int]) -> list[Exception | None]:
        if not indices:
            return []
        messages = [self._messages[index] for index in indices]
        return self._producer.send(messages, max(0.0, self._deadline - time.monotonic()))

    def _held(self, message: Message) -> BrokerUnavailable | MessageHeldBack | None:
        """Return what keeps a message from being sent, if anything."""
        cause = None if message.key is None else self._stopped.get(message.key)
        if isinstance(cause, BrokerUnavailable):
            return BrokerUnavailable(f"behind an earlier message of its key {message.key!r}: {cause}", message)
        return None if cause is None else MessageHeldBack(message)


def _at_once(messages: Sequence[Message]) -> Iterable[Iterable[int]]:
    return [range(len(messages))]


def _rounds(messages: Sequence[Message]) -> Iterable[Iterable[int]]:
    """Part messages into rounds: the n-th of each key is in round n, and what has no key in the first."""
    seen: Counter[str] = Counter()
    rounds: defaultdict[int, list[int]] = defaultdict(list)
    for index, message in enumerate(messages):
        if message.key is None:
            rounds[0].append(index)
        else:
            rounds[seen[message.key]].append(index)
            seen[message.key] += 1
    return [rounds[number] for number in sorted(rounds)]


__all__ = ("BatchRejected", "KafkaMessageBroker", "KafkaProducer", "Record", "ValueSerializer", "record_of")
