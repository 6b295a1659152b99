"""The message-broker port."""

from __future__ import annotations

import abc
import base64
import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from cqrs_sync.errors import BrokerError, BrokerUnavailable, MessageHeldBack, MessageRejected


@dataclasses.dataclass(frozen=True)
class Message:
    """What a broker carries.

    Attributes:
        message_name: the event's name on the wire.
        topic: where it goes.
        payload: the event as a dictionary; for brokers that keep objects.
        message_id: the event's id; stays the same when the message is sent again.
        payload_bytes: the event as bytes, which real brokers send untouched.
        content_type: the MIME type of ``payload_bytes``.
        headers: text headers.
        key: messages of one key stay in order; None means no order is needed.
    """

    message_name: str
    topic: str
    payload: Any
    message_id: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)
    payload_bytes: bytes | None = None
    content_type: str | None = None
    headers: Mapping[str, str] | None = None
    key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the message as a dictionary of JSON values; bytes as base64, absent parts left out."""
        fields: dict[str, Any] = {
            "messageName": self.message_name,
            "messageId": str(self.message_id),
            "topic": self.topic,
            "payload": self.payload,
        }
        if self.payload_bytes is not None:
            fields["payloadBytes"] = base64.b64encode(self.payload_bytes).decode("ascii")
        optional = {"contentType": self.content_type, "headers": self.headers and dict(self.headers), "key": self.key}
        return fields | {name: value for name, value in optional.items() if value is not None}


class MessageBroker(abc.ABC):
    """Sends messages. Thread-safe; blocks until the broker has the message."""

    @abc.abstractmethod
    def send_message(self, message: Message) -> None:
        """Send one message and return once the broker has it.

        Raises:
            BrokerUnavailable: the broker cannot be reached now; try again later.
            MessageRejected: it will never take this message.
            ConfigurationError: it is set up wrongly, and takes no message until somebody mends that.
        """

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Send several messages, in their order for each key, and return one result for each: None, or its error.

        * ``MessageRejected``: the broker will never take it. Later messages of its key are then not tried: their
          result is ``MessageHeldBack``.
        * ``BrokerUnavailable``: it did not get there, or nobody knows. The messages behind the first of these are
          not tried and have the same result.
        * Any other exception is what :meth:`send_message` raised for this very message; the rest is not tried, and
          has ``BrokerUnavailable`` as its result.

        Brokers that can have several messages under way override this; what such a one raises, instead of returning
        it, says nothing about any message.
        """
        results: list[Exception | None] = []
        rejected: set[str] = set()
        for message in messages:
            if message.key is not None and message.key in rejected:
                results.append(MessageHeldBack(message))
                continue
            try:
                self.send_message(message)
                results.append(None)
            except MessageRejected as error:
                results.append(error)
                if message.key is not None:
                    rejected.add(message.key)
            except BrokerUnavailable as error:
                results.extend([error] * (len(messages) - len(results)))
                break
            except Exception as error:
                results.append(error)
                untried = BrokerUnavailable(f"not tried, after a {type(error).__name__} of the message before", message)
                results.extend([untried] * (len(messages) - len(results)))
                break
        return results

    def close(self) -> None:
        """Give back connections. Calling it twice is harmless."""
        return  # a broker without connections has nothing to give back

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


__all__ = ("BrokerError", "BrokerUnavailable", "Message", "MessageBroker", "MessageHeldBack", "MessageRejected")
