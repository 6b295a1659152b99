"""Kafka producers on confluent-kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from cqrs_sync.adapters.kafka_pipeline import RECORD_CODES, UNKNOWN_TOPIC_CODES, PipeliningProducer, topic_patience
from cqrs_sync.errors import ConfigurationError, NotInstalled
from cqrs_sync.message_brokers.kafka import Record, ValueSerializer

try:
    from confluent_kafka import KafkaError, KafkaException, Producer
except ImportError as _missing:
    raise NotInstalled.extra(__name__, "confluent") from _missing

logger = logging.getLogger(__name__)

FLUSH = 0.005
"""Seconds in which most batches are acknowledged."""

NAMES_WITH_UNDERSCORES = ("log_level", "on_delivery", "logger")


class ConfluentProducerAdapter(PipeliningProducer["_Client", "_Report"]):
    """Sends with confluent-kafka: the C client, for high rates.

    Defaults: acknowledged by all in-sync replicas (``acks="all"``), idempotent. Keys go to
    the partitions that kafka-python and Java clients choose. The client's own log goes to this module's logger.

    Args:
        bootstrap_servers: ``host:port`` of some of the cluster's nodes; a string may name several, with commas.
        timeout: the seconds one ``send_messages`` may take, retries and connecting included.
        value_serializer: makes bytes of a message's payload where it has no bytes yet; JSON by default.
        options: librdkafka's own, with ``_`` for ``.``: ``security_protocol``, ``ssl_ca_location``, ``sasl_mechanism``,
            ``acks``, ``compression_type``, ``linger_ms``, ``client_id``, ...

    Raises:
        ConfigurationError: an option is unknown or contradicts another one.
    """

    unknown_topic_codes: ClassVar[frozenset[int]] = UNKNOWN_TOPIC_CODES | {
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
    record_codes: ClassVar[frozenset[int]] = RECORD_CODES | {KafkaError._INVALID_DIFFERENT_RECORD}
    client_errors: ClassVar[tuple[type[Exception], ...]] = (KafkaException, BufferError)

    def __init__(
        self,
        bootstrap_servers: Sequence[str] | str,
        *,
        timeout: float = 30.0,
        value_serializer: ValueSerializer | None = None,
        **options: Any,
    ) -> None:
        super().__init__(bootstrap_servers, timeout, value_serializer)
        milliseconds = max(1, int(self.timeout * 1000))
        given = {_property(name): value for name, value in options.items()}
        if "transactional.id" in given:
            raise ConfigurationError("transactional_id cannot be set here: nothing would begin and commit transactions")
        acks = str(given.get("acks", given.get("request.required.acks", "all")))
        if acks not in ("all", "-1", "1"):
            raise ConfigurationError(f"acks is {acks}: use 'all', or 1; with 0 nobody knows what arrived")
        self._config: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.servers),
            "acks": "all",
            # Without it, a batch that is sent again may be there twice, or behind a later one.
            "enable.idempotence": acks != "1",
            "partitioner": "murmur2_random",
            "message.timeout.ms": milliseconds,
            "request.timeout.ms": max(1, milliseconds // 2),  # so that a lost connection leaves time for another one
            "socket.timeout.ms": max(10, milliseconds // 2),
            "topic.metadata.propagation.max.ms": int(topic_patience(self.timeout) * 1000),
            "reconnect.backoff.max.ms": 1000,
            "logger": logger,
        } | given
        try:
            Producer(self._config)  # connects to nothing before it is used, and knows all the rules
        except (KafkaException, TypeError, ValueError) as error:
            raise ConfigurationError(f"confluent-kafka refuses these options: {error}") from error

    def _connect(self, timeout: float) -> _Client:  # noqa: ARG002 (it connects in the background)
        return _Client(self._config)

    def _give_up(self, client: _Client, orderly: bool) -> None:  # noqa: ARG002 (it takes milliseconds)
        client.close()

    def _produce(self, client: _Client, record: Record, deadline: float) -> _Report:
        report = _Report()
        topic, value, key, headers = record
        while True:
            try:
                client.producer.produce(topic, value, key, headers=headers, on_delivery=report)  # type: ignore[arg-type]
                return report
            except BufferError:  # its queue is full
                if time.monotonic() >= deadline:
                    raise
                client.serve(deadline)

    def _outcomes(self, client: _Client, tickets: Sequence[_Report], deadline: float) -> list[Exception | None]:
        for report in tickets:
            while report.error is _PENDING and time.monotonic() < deadline:
                client.serve(deadline, report)
        return [None if report.error is None else client.explain(report) for report in tickets]

    def _code(self, error: BaseException | None) -> int | None:
        cause = error.args[0] if isinstance(error, KafkaException) else None
        return cause.code() if isinstance(cause, KafkaError) else None


class _Report:
    """Takes one message's delivery report."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: Any = _PENDING

    def __call__(self, error: KafkaError | None, _message: object) -> None:
        self.error = error


_PENDING = object()


class _Trouble:
    """The last thing that went wrong with the connections."""

    text = ""

    def __init__(self, then: Any) -> None:
        self._then = then

    def __call__(self, error: KafkaError) -> None:
        self.text = error.str()
        if self._then is not None:
            self._then(error)


class _Client:
    """A librdkafka producer, and whose turn it is to take delivery reports from it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.trouble = _Trouble(config.get("error_cb"))
        self.producer = Producer(config | {"error_cb": self.trouble})
        self._turn = threading.Condition()  # guards _polling
        self._polling = False

    def serve(self, deadline: float, ticket: _Report | None = None) -> None:
        """Take reports, or wait until another thread has taken some: one thread polls, for all."""
        with self._turn:
            if ticket is not None and ticket.error is not _PENDING:
                return
            remaining = max(0.0, deadline - time.monotonic())
            if self._polling:
                self._turn.wait(remaining)
                return
            self._polling = True
        try:
            # Polling alone would leave the last messages lingering for company that does not come: 20 % less at
            # 500 messages. Flushing alone would wait for the messages of all threads.
            still_out = self.producer.flush(min(remaining, FLUSH))
            if still_out and (ticket is None or ticket.error is _PENDING):
                self.producer.poll(max(0.0, deadline - time.monotonic()))
        finally:
            with self._turn:
                self._polling = False
                self._turn.notify_all()

    def explain(self, report: _Report) -> KafkaException:
        """Return a report's error, with the last trouble of the connections: its own text may be that time was up."""
        timed_out = report.error is _PENDING
        code = KafkaError._MSG_TIMED_OUT if timed_out else report.error.code()
        text = "not acknowledged in time" if timed_out else report.error.str()
        return KafkaException(KafkaError(code, f"{text} ({self.trouble.text})" if self.trouble.text else text))

    def close(self) -> None:
        """Forget what is not sent, and destroy the producer, which takes milliseconds."""
        self.producer.purge()
        del self.producer


def confluent_producer_factory(
    dsn: str,
    security_protocol: str = "PLAINTEXT",
    sasl_mechanism: str = "PLAIN",
    retry_count: int | None = None,
    retry_delay: float = 0.1,
    user: str | None = None,
    password: str | None = None,
    value_serializer: ValueSerializer | None = None,
    **options: Any,
) -> ConfluentProducerAdapter:
    """Return a producer, with the arguments of :func:`~cqrs_sync.adapters.kafka.kafka_producer_factory`.

    There is no ``ssl_context``: librdkafka takes files, in ``ssl_ca_location``, ``ssl_certificate_location`` and
    ``ssl_key_location``.
    """
    given: dict[str, Any] = {"security_protocol": security_protocol, "retry_backoff_ms": int(retry_delay * 1000)}
    if retry_count is not None:
        given["message_send_max_retries"] = retry_count
    if security_protocol.startswith("SASL"):
        given |= {"sasl_mechanism": sasl_mechanism, "sasl_username": user, "sasl_password": password}
    elif user is not None or password is not None:
        raise ConfigurationError(
            f"user and password need security_protocol='SASL_SSL' (or 'SASL_PLAINTEXT'), not {security_protocol!r}"
        )
    return ConfluentProducerAdapter(dsn, value_serializer=value_serializer, **given | options)


def _property(option: str) -> str:
    """Return librdkafka's name of an option: ``linger_ms`` is ``linger.ms``."""
    keep = option in NAMES_WITH_UNDERSCORES or option.endswith("_cb")
    return option if keep else option.replace("_", ".")


__all__ = ("ConfluentProducerAdapter", "confluent_producer_factory")
