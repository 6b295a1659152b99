"""Kafka producers on kafka-python."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from cqrs_sync.adapters.kafka_pipeline import PipeliningProducer, topic_patience
from cqrs_sync.errors import ConfigurationError, NotInstalled
from cqrs_sync.message_brokers.kafka import Record, ValueSerializer

try:
    from kafka import KafkaProducer, codec, errors  # type: ignore[import-untyped]
    from kafka.net.sasl import SASL_MECHANISMS  # type: ignore[import-untyped]
except ImportError as _missing:
    raise NotInstalled.extra(__name__, "kafka") from _missing

CODECS = {"gzip": codec.has_gzip, "snappy": codec.has_snappy, "lz4": codec.has_lz4, "zstd": codec.has_zstd}
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
OURS = {
    *("bootstrap_timeout_ms", "kafka_client", "key_serializer", "max_block_ms"),
    *("enable_idempotence", "max_in_flight_requests_per_connection", "transactional_id"),
}
"""Options that the adapter depends on."""
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
METADATA_WAIT = 1.0
"""Seconds that kafka-python waits for a topic before it lets us look at the clock."""


class KafkaProducerAdapter(PipeliningProducer["_Client", Any]):
    """Sends with kafka-python.

    Defaults: acknowledged by all in-sync replicas (``acks="all"``), batches of 128 KiB that wait for nothing. Keys go
    to the partitions that Java clients choose. One request is under way at a time, which keeps the order; one whose
    answer is lost is repeated, and may then be there twice.

    Args:
        bootstrap_servers: ``host:port`` of some of the cluster's nodes; a string may name several, with commas.
        timeout: the seconds one ``send_messages`` may take, retries and connecting included.
        value_serializer: makes bytes of a message's payload where it has no bytes yet; JSON by default.
        options: kafka-python's own, by its names: ``security_protocol``, ``ssl_cafile``, ``sasl_mechanism``, ``acks``,
            ``compression_type``, ``linger_ms``, ``batch_size``, ``client_id``, ...

    Raises:
        ConfigurationError: an option is unknown or contradicts another one.
    """

    client_errors: ClassVar[tuple[type[Exception], ...]] = (errors.KafkaError, OSError)

    def __init__(
        self,
        bootstrap_servers: Sequence[str] | str,
        *,
        timeout: float = 30.0,
        value_serializer: ValueSerializer | None = None,
        **options: Any,
    ) -> None:
        super().__init__(bootstrap_servers, timeout, value_serializer)
        milliseconds = int(self.timeout * 1000)
        self._patience = topic_patience(self.timeout)
        _check_names(options)
        self._options = {
            "acks": "all",
            # kafka-python 3's idempotent producer fails everything, for ever and with the same error, once the broker
            # has refused a single batch, and never sends again after a delivery timeout. One request at a time keeps
            # the order without it, at the same rate.
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,
            "batch_size": 128 * 1024,
            "delivery_timeout_ms": milliseconds,
            "request_timeout_ms": milliseconds // 2,  # so that a lost connection leaves time for another one
            "reconnect_backoff_max_ms": 1000,
            "max_block_ms": int(METADATA_WAIT * 1000),
        } | options
        # What kafka-python would find only when it has connected, or never tell from a broker that is away.
        for name, value in self._options.items():
            _check_type(name, value)
        _check_delivery(self._options)
        _check_security(self._options)

    def _connect(self, timeout: float) -> _Client:
        options = {"bootstrap_servers": self.servers, "bootstrap_timeout_ms": int(timeout * 1000)} | self._options
        try:
            return _Client(options)
        except (errors.KafkaConfigurationError, ValueError, TypeError, AssertionError) as error:
            raise ConfigurationError(f"kafka-python refuses these options: {error}") from error

    def _give_up(self, client: _Client, orderly: bool) -> None:
        client.close(1.0 if orderly else 0.0)

    def _produce(self, client: _Client, record: Record, deadline: float) -> Any:
        topic, value, key, headers = record
        client.know(topic, deadline, self._patience)
        future = client.send(topic, value, key, headers)
        if future.is_done and future.failed():
            raise future.exception
        return future

    def _outcomes(
        self,
        client: _Client,  # noqa: ARG002 (the tickets know it)
        tickets: Sequence[Any],
        deadline: float,
    ) -> list[Exception | None]:
        # Not flush(): it has a timeout for each batch, and raises for one that was split.
        return [_outcome(future, deadline) for future in tickets]

    def _code(self, error: BaseException | None) -> int | None:
        code: int | None = getattr(error, "errno", None) if isinstance(error, errors.BrokerResponseError) else None
        return code


class _Client(KafkaProducer):  # type: ignore[misc]  # kafka-python has no types
    """A producer that can be given up, and that tells an unknown topic from a broker that is away."""

    _network: Any = None

    def __init__(self, options: dict[str, Any]) -> None:
        self._pid = os.getpid()
        self._giving_up = False
        try:
            super().__init__(kafka_client=self._open_network, **options)
        except BaseException:
            if self._network is not None:
                self._network.close()  # the constructor leaves its connections open when it fails
            raise

    def _open_network(self, **options: Any) -> Any:
        self._network = KafkaProducer.DEFAULT_CONFIG["kafka_client"](**options)
        return self._network

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything is sent, unless the producer is given up."""
        if not self._giving_up:
            super().flush(timeout)

    def close(self, timeout: float | None = None, null_logger: bool = False) -> None:
        """Close, and give up on what cannot be sent within ``timeout``; in a forked child, do nothing.

        The parent class raises where something is left to send, before it stops its thread.
        """
        if self._pid != os.getpid():
            return
        self._giving_up = timeout == 0
        try:
            super().close(timeout, null_logger)
        except errors.KafkaTimeoutError:
            self._giving_up = True
            super().close(0, null_logger)

    def know(self, topic: str, deadline: float, patience: float) -> None:
        """Return when the topic's partitions are known.

        Raises:
            KafkaError: that the topic is unknown if the cluster says so for ``patience`` seconds, that it is invalid
                or forbidden, or a timeout.
        """
        cluster = self._network.cluster
        if cluster.partitions_for_topic(topic) is not None:
            return
        patient_until = min(deadline, time.monotonic() + patience)
        while True:
            if time.monotonic() >= deadline:
                raise errors.KafkaTimeoutError(f"no metadata of topic {topic!r}")
            try:
                self.partitions_for(topic)
                return
            except errors.KafkaTimeoutError:
                if self._cluster_answers(deadline) and time.monotonic() >= patient_until:
                    raise errors.UnknownTopicOrPartitionError(topic) from None

    def _cluster_answers(self, deadline: float) -> bool:
        """Ask for metadata, and return whether it came: an error code is an answer, too."""
        answered = threading.Event()
        future = self._network.cluster.request_update()
        future.add_both(lambda _: answered.set())
        answered.wait(max(0.0, min(METADATA_WAIT, deadline - time.monotonic())))
        return bool(future.succeeded() or isinstance(future.exception, errors.BrokerResponseError))


def kafka_producer_factory(
    dsn: str,
    security_protocol: str = "PLAINTEXT",
    sasl_mechanism: str = "PLAIN",
    ssl_context: ssl.SSLContext | None = None,
    retry_count: int | None = None,
    retry_delay: float = 0.1,
    user: str | None = None,
    password: str | None = None,
    value_serializer: ValueSerializer | None = None,
    **options: Any,
) -> KafkaProducerAdapter:
    """Return a producer, with the arguments of the async library's factory; nothing is connected yet.

    Args:
        dsn: ``host:port``, several with commas.
        security_protocol: ``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``.
        sasl_mechanism: used with the SASL protocols only.
        ssl_context: TLS settings.
        retry_count: how often a request is repeated; as often as the timeout allows by default.
        retry_delay: the seconds in between.
        user: for SASL.
        password: for SASL.
        value_serializer: as in :class:`KafkaProducerAdapter`, and so are ``options``, ``timeout`` among them.
    """
    given: dict[str, Any] = {"security_protocol": security_protocol, "retry_backoff_ms": int(retry_delay * 1000)}
    if ssl_context is not None:
        given["ssl_context"] = ssl_context
    if retry_count is not None:
        given["retries"] = retry_count
    if security_protocol.startswith("SASL"):
        given |= {"sasl_mechanism": sasl_mechanism, "sasl_plain_username": user, "sasl_plain_password": password}
    elif user is not None or password is not None:
        raise ConfigurationError(
            f"user and password need security_protocol='SASL_SSL' (or 'SASL_PLAINTEXT'), not {security_protocol!r}"
        )
    return KafkaProducerAdapter(dsn, value_serializer=value_serializer, **given | options)


def _outcome(future: Any, deadline: float) -> Exception | None:
    try:
        if not future.is_done:
            future.get(max(0.0, deadline - time.monotonic()))
    except errors.KafkaError as error:
        failure: Exception = error
        return failure
    # Not what get() returns: kafka-python 3.0.0 returns from it at the deadline.
    return None if future.succeeded() else future.exception or errors.KafkaTimeoutError("not acknowledged in time")


def _check_names(options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - set(KafkaProducer.DEFAULT_CONFIG) | set(options) & OURS)
    if unknown:
        raise ConfigurationError(f"kafka-python's producer has no option {', '.join(unknown)} that can be set here")


def _check_type(name: str, value: Any) -> None:
    """Refuse what is of another type than the option's default, where that tells."""
    default = KafkaProducer.DEFAULT_CONFIG[name]
    wanted = None
    if isinstance(default, bool):
        wanted = None if isinstance(value, bool) else "True or False"
    elif isinstance(default, int | float) and name != "acks":
        wanted = None if type(value) in (int, float) and value >= 0 else "a number from 0 up"
    elif isinstance(default, str) or (name == "client_id" and value is not None):
        wanted = None if isinstance(value, str) else "a text"
    if wanted is not None:
        raise ConfigurationError(f"{name} is {value!r}: use {wanted}")


def _check_delivery(options: dict[str, Any]) -> None:
    if options["acks"] not in ("all", -1, 1):
        raise ConfigurationError(f"acks is {options['acks']!r}: use 'all', or 1; with 0 nobody knows what arrived")
    compression = options.get("compression_type")
    if compression is not None and compression not in tuple(CODECS):
        raise ConfigurationError(f"compression_type is {compression!r}: use one of {', '.join(CODECS)}")
    if compression is not None and not CODECS[compression]():
        raise ConfigurationError(
            f"compression_type {compression!r} needs a package: pip install 'kafka-python[{compression}]'"
        )
    delivery, linger = options["delivery_timeout_ms"], options.get("linger_ms", 0)
    request = options["request_timeout_ms"]
    if delivery < linger + request:
        raise ConfigurationError(
            f"delivery_timeout_ms ({delivery}, from timeout) is less than linger_ms ({linger}) and request_timeout_ms "
            f"({request}) together: give more timeout, or less of these"
        )


def _check_security(options: dict[str, Any]) -> None:
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol not in SECURITY_PROTOCOLS:
        raise ConfigurationError(f"security_protocol is {protocol!r}: use one of {', '.join(SECURITY_PROTOCOLS)}")
    for name in FILES:
        path = options.get(name)
        if path and not (isinstance(path, str | os.PathLike) and os.path.isfile(path)):
            raise ConfigurationError(f"{name} is {path!r}: there is no such file")
    if protocol.startswith("SASL"):
        _check_sasl(protocol, options)


def _check_sasl(protocol: str, options: dict[str, Any]) -> None:
    mechanism = options.get("sasl_mechanism")
    if mechanism is None:
        raise ConfigurationError(f"security_protocol {protocol} needs a sasl_mechanism, as in 'SCRAM-SHA-512'")
    if mechanism not in tuple(SASL_MECHANISMS):
        raise ConfigurationError(f"sasl_mechanism is {mechanism!r}: use one of {', '.join(SASL_MECHANISMS)}")
    needed: tuple[str, ...] = ()
    if mechanism == "OAUTHBEARER":
        needed = ("sasl_oauth_token_provider",)
    elif mechanism == "PLAIN" or mechanism.startswith("SCRAM"):
        needed = ("sasl_plain_username", "sasl_plain_password")
    missing = [name for name in needed if not options.get(name)]
    if missing:
        raise ConfigurationError(f"sasl_mechanism {mechanism} needs {' and '.join(missing)}")


__all__ = ("KafkaProducerAdapter", "kafka_producer_factory")
