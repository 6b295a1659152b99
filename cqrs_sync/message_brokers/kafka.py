"""Kafka as a message broker: not part of this release."""

from cqrs_sync.errors import NotInstalled

raise NotInstalled("cqrs_sync.message_brokers.kafka", "Kafka comes with a later release of cqrs-sync")
