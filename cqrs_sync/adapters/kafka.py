"""Kafka producers: not part of this release."""

from cqrs_sync.errors import NotInstalled

raise NotInstalled("cqrs_sync.adapters.kafka", "Kafka comes with a later release of cqrs-sync")
