"""Where notification events go."""

from cqrs_sync.message_brokers.devnull import DevnullMessageBroker
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.message_brokers.protocol import BrokerUnavailable, Message, MessageBroker, MessageRejected

__all__ = (
    "BrokerUnavailable",
    "DevnullMessageBroker",
    "InMemoryMessageBroker",
    "Message",
    "MessageBroker",
    "MessageRejected",
)
