"""RabbitMQ: not part of this release."""

from cqrs_sync.errors import NotInstalled

raise NotInstalled(__name__, "RabbitMQ is not part of this release; implement MessageBroker, in one method, for it")
