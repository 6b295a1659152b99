"""Orchestrated sagas: not part of this release."""

from cqrs_sync.errors import NotInstalled

raise NotInstalled("cqrs_sync.saga", "sagas come with a later release of cqrs-sync")
