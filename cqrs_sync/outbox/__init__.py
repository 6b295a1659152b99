"""The transactional outbox: not part of this release."""

from cqrs_sync.errors import NotInstalled

raise NotInstalled("cqrs_sync.outbox", "the transactional outbox comes with a later release of cqrs-sync")
