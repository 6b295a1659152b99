"""What Kafka producers have in common, whatever the client."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from cqrs_sync.adapters.shared_client import ClientOwner
from cqrs_sync.checks import in_seconds, refuse_async
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageHeldBack, MessageRejected
from cqrs_sync.message_brokers.kafka import BatchRejected, KafkaProducer, Record, ValueSerializer, record_of
from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.serializers.default import encode_json

Client = TypeVar("Client")
Ticket = TypeVar("Ticket")

Refusal = MessageRejected | MessageHeldBack | BrokerUnavailable

UNKNOWN_TOPIC_CODES = frozenset({3})
"""Kafka's UNKNOWN_TOPIC_OR_PARTITION: a rejection, as a topic nobody has created must not keep all others waiting."""

TOPIC_CODES = frozenset({17, 29})
"""INVALID_TOPIC_EXCEPTION, TOPIC_AUTHORIZATION_FAILED: this topic, not the broker."""

RECORD_CODES = frozenset({2, 10, 18, 32, 43, 44, 76, 87})
"""CORRUPT_MESSAGE, MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE, INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT,
POLICY_VIOLATION, UNSUPPORTED_COMPRESSION_TYPE, INVALID_RECORD: this record, or another one of its batch."""

TOPIC_PATIENCE = 5.0
"""Seconds in which a topic that is created on demand must appear; at most a third of the timeout."""


class PipeliningProducer(ClientOwner[Client], KafkaProducer, Generic[Client, Ticket]):
    """Hands all messages to a client and then waits for all of them.

    The client is built on first use, per process, and thrown away after an outcome that is not known, because there is
    no other way to make it forget what it may still send; and after an unknown topic, which it would take for unknown
    when it exists, or ask for all the time. The next call builds another one. Threads that still use the old one
    finish with it.

    Closing it twice is harmless; sending after that is ``BrokerUnavailable``; forgetting to is a ``ResourceWarning``.
    """

    unknown_topic_codes: ClassVar[frozenset[int]] = UNKNOWN_TOPIC_CODES
    record_codes: ClassVar[frozenset[int]] = RECORD_CODES
    client_errors: ClassVar[tuple[type[Exception], ...]]
    """What the client raises; anything else that is not about the message is a bug and passes through."""

    def __init__(
        self, bootstrap_servers: Sequence[str] | str, timeout: float, value_serializer: ValueSerializer | None
    ) -> None:
        super().__init__()
        self.servers = server_list(bootstrap_servers)
        self.timeout = in_seconds(timeout, "timeout")
        self._serialize = encode_json if value_serializer is None else value_serializer
        if not callable(self._serialize):
            raise ConfigurationError(
                f"value_serializer must be a function that returns bytes, not {value_serializer!r}"
            )
        refuse_async(self._serialize, "value_serializer")
        # What "except" takes where there is no client, and where there is no ticket.
        self._without_client: tuple[type[Exception], ...] = (BrokerUnavailable, *self.client_errors)
        self._without_ticket: tuple[type[Exception], ...] = (
            MessageRejected,
            TypeError,
            ValueError,
            *self.client_errors,
        )

    def send(self, messages: Sequence[Message], timeout: float) -> list[Exception | None]:
        """Send all messages at once, as the port has it."""
        deadline = time.monotonic() + timeout
        try:
            with self._client(deadline) as tenancy:
                results = self._pipeline(tenancy.client, messages, deadline)
                if any(result is not None and self._spoils_client(result) for result in results):
                    tenancy.retired = True
            return results
        except self._without_client as error:
            return [self._failure(error, message, sent=False) for message in messages]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {','.join(self.servers)}>"

    def _pipeline(self, client: Client, messages: Sequence[Message], deadline: float) -> list[Exception | None]:
        entries = self._hand_over(client, messages, deadline)
        tickets = [entry for entry in entries if not isinstance(entry, Exception)]
        errors = iter(self._outcomes(client, tickets, deadline))
        outcomes = [entry if isinstance(entry, Exception) else next(errors) for entry in entries]
        return [
            error if error is None or isinstance(error, Refusal) else self._failure(error, message, sent=True)
            for message, error in zip(messages, outcomes, strict=True)
        ]

    def _hand_over(self, client: Client, messages: Sequence[Message], deadline: float) -> list[Ticket | Refusal]:
        """Return a ticket for each message, or what kept it from being sent."""
        entries: list[Ticket | Refusal] = []
        held: set[str] = set()
        topics: dict[str, Exception] = {}  # refused in this call; finding out takes seconds
        outage: Exception | None = None
        for message in messages:
            refused = outage or topics.get(message.topic)
            if held and outage is None and message.key in held:
                entries.append(MessageHeldBack(message))
                continue
            try:
                if refused is None:
                    entries.append(self._produce(client, record_of(message, self._serialize), deadline))
                    continue
            except self._without_ticket as error:
                refused = error
            failure = self._failure(refused, message, sent=False)
            entries.append(failure)
            if isinstance(failure, BrokerUnavailable):
                outage = refused
            elif message.key is not None:
                held.add(message.key)
            if self._is_about_topic(refused):
                topics[message.topic] = refused
        return entries

    def _spoils_client(self, result: Exception) -> bool:
        return isinstance(result, BrokerUnavailable) or self._code(result.__cause__) in self.unknown_topic_codes

    def _is_about_topic(self, error: Exception) -> bool:
        code = self._code(error)
        return code in TOPIC_CODES or code in self.unknown_topic_codes

    def _failure(self, error: Exception, message: Message, *, sent: bool) -> MessageRejected | BrokerUnavailable:
        """Tell by its class and code whether an error is about this message or about the broker."""
        if isinstance(error, MessageRejected):
            return error
        kind: type[MessageRejected] | None = None
        if self._is_about_topic(error) or (not sent and isinstance(error, TypeError | ValueError)):
            kind = MessageRejected
        elif self._code(error) in self.record_codes:
            kind = BatchRejected if sent else MessageRejected
        if kind is not None:
            failure: MessageRejected | BrokerUnavailable = kind(
                f"Kafka does not take {message.message_name} for topic {message.topic!r}: {error}", message
            )
        else:
            failure = BrokerUnavailable(
                f"no answer from Kafka at {','.join(self.servers)} ({error}): see that it runs and can be reached from "
                "here, and that bootstrap_servers, security_protocol, user and password are right",
                message,
            )
        failure.__cause__ = error
        return failure

    @abc.abstractmethod
    def _produce(self, client: Client, record: Record, deadline: float) -> Ticket:
        """Hand a record to the client; raise what refuses it."""

    @abc.abstractmethod
    def _outcomes(self, client: Client, tickets: Sequence[Ticket], deadline: float) -> list[Exception | None]:
        """Wait for what became of records: None, or the client's error, which is a timeout at the deadline."""

    @abc.abstractmethod
    def _code(self, error: BaseException | None) -> int | None:
        """Return the error code that Kafka's protocol (or the client, below 0) has for an error."""


def server_list(servers: Sequence[str] | str) -> list[str]:
    """Return ``host:port`` strings, from a list of them or one string with commas."""
    given = servers.split(",") if isinstance(servers, str) else servers
    try:
        found = [each for each in map(str.strip, given) if each]
    except TypeError:  # not texts, or not several
        found = []
    if not found:
        raise ConfigurationError(f"bootstrap_servers is {servers!r}: name at least one, as in ['localhost:9092']")
    if any("://" in each for each in found):
        raise ConfigurationError(
            f"bootstrap_servers is {servers!r}: leave out what is before the host, as in ['localhost:9092']; for TLS "
            "there is security_protocol"
        )
    for each in found:
        host, colon, port = each.rpartition(":")
        # More colons, or brackets, are an IPv6 address.
        if colon and (not host or (":" not in host and not port.isdecimal())):
            raise ConfigurationError(
                f"bootstrap_servers has {each!r}: give a host and a number, as in 'localhost:9092'"
            )
    return found


def topic_patience(timeout: float) -> float:
    """Return how many seconds of a timeout a topic has to appear."""
    return min(TOPIC_PATIENCE, timeout / 3)
