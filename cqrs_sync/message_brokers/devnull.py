"""The broker of an application that has none."""

from __future__ import annotations

import logging

from cqrs_sync.message_brokers.protocol import Message, MessageBroker

logger = logging.getLogger(__name__)


class DevnullMessageBroker(MessageBroker):
    """Drops every message: the default of ``bootstrap``.

    The first one is logged as a WARNING, without its content, the others at DEBUG. Nothing is kept.
    """

    def __init__(self) -> None:
        self._warned = False

    def send_message(self, message: Message) -> None:
        """Drop the message."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(
            level,
            "notification event %s for topic %s is dropped: no message_broker was given to bootstrap, and the unit of "
            "work has no outbox",
            message.message_name,
            message.topic,
            extra={"message_id": str(message.message_id)},
        )
