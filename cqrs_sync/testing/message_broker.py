"""The contract of :class:`~cqrs_sync.message_brokers.protocol.MessageBroker`."""

from __future__ import annotations

import abc
import threading

from cqrs_sync.message_brokers.protocol import Message, MessageBroker


class MessageBrokerContract(abc.ABC):
    """What every broker does. Derive a test class from it and return a fresh broker from :meth:`make`."""

    @abc.abstractmethod
    def make(self) -> MessageBroker:
        """Return a broker that can be reached and takes messages for the topic ``contract``."""

    def message(self, number: int, key: str | None = None) -> Message:
        """A message with a number in it."""
        content = f'{{"number": {number}}}'.encode()
        return Message("numbered", "contract", {"number": number}, payload_bytes=content, key=key)

    def test_send_message_returns_once_the_broker_has_it(self) -> None:
        """And raises nothing."""
        with self.make() as broker:
            broker.send_message(self.message(1))

    def test_send_messages_reports_one_result_for_each(self) -> None:
        """None for each that was taken."""
        with self.make() as broker:
            assert broker.send_messages([self.message(number, key="k") for number in range(5)]) == [None] * 5
            assert broker.send_messages([]) == []

    def test_many_threads_may_send_at_once(self) -> None:
        """A broker is shared by a whole application."""
        failures: list[BaseException] = []
        with self.make() as broker:

            def send(number: int) -> None:
                try:
                    broker.send_message(self.message(number))
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert not failures

    def test_closing_twice_is_harmless(self) -> None:
        """Owners need not keep count."""
        broker = self.make()
        broker.close()
        broker.close()
