"""A broker inside the process, for tests and for programs that need no other."""

from __future__ import annotations

import threading

from cqrs_sync.message_brokers.protocol import BrokerUnavailable, Message, MessageBroker


class InMemoryMessageBroker(MessageBroker):
    """Keeps messages in the order in which they were sent.

    Args:
        capacity: how many messages it holds; when full it raises ``BrokerUnavailable``, so memory stays bounded.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()  # guards _messages
        self._messages: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """A copy of what it holds, oldest first."""
        with self._lock:
            return list(self._messages)

    def topic(self, name: str) -> list[Message]:
        """A copy of what it holds for one topic, oldest first."""
        return [message for message in self.messages if message.topic == name]

    def send_message(self, message: Message) -> None:
        """Keep the message.

        Raises:
            BrokerUnavailable: it holds ``capacity`` messages; take some with :meth:`drain`.
        """
        with self._lock:
            if len(self._messages) < self._capacity:
                self._messages.append(message)
                return
        raise BrokerUnavailable(f"the in-memory broker is full ({self._capacity} messages)", message)

    def drain(self) -> list[Message]:
        """Take everything out and return it, oldest first."""
        with self._lock:
            taken, self._messages = self._messages, []
        return taken
