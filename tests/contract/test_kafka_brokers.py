"""The broker's contract, run over both Kafka clients on a real Kafka and on the mock cluster."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.testing.message_broker import MessageBrokerContract
from tests import kafka as servers


class KafkaContract(MessageBrokerContract):
    adapter: ClassVar[type[Any]]
    options: ClassVar[dict[str, Any]] = {}
    one_in_flight_per_key = False
    address: str

    def make(self) -> MessageBroker:
        producer = self.adapter(self.address, **self.options)
        return KafkaMessageBroker(producer, one_in_flight_per_key=self.one_in_flight_per_key)


class OnRealKafka(KafkaContract):
    @pytest.fixture(autouse=True)
    def _server(self, kafka: servers.Kafka) -> None:
        self.address = kafka.address


class OnMockKafka(KafkaContract):
    @pytest.fixture(autouse=True)
    def _server(self, mock_kafka: servers.MockKafka) -> None:
        self.address = mock_kafka.address


class TestKafkaPythonOnRealKafka(OnRealKafka):
    adapter = KafkaProducerAdapter


class TestConfluentOnRealKafka(OnRealKafka):
    adapter = ConfluentProducerAdapter


class TestKafkaPythonOnMockKafka(OnMockKafka):
    adapter = KafkaProducerAdapter
    options: ClassVar[dict[str, Any]] = {"api_version": (2, 3)}  # it cannot read how the mock says what it speaks


class TestConfluentOnMockKafka(OnMockKafka):
    adapter = ConfluentProducerAdapter


class TestKafkaPythonOneByOne(OnRealKafka):
    adapter = KafkaProducerAdapter
    one_in_flight_per_key = True


class TestConfluentOneByOne(OnRealKafka):
    adapter = ConfluentProducerAdapter
    one_in_flight_per_key = True
