"""Where notification events go."""

from cqrs_sync.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "BrokerUnavailable": "cqrs_sync.message_brokers.protocol",
        "DevnullMessageBroker": "cqrs_sync.message_brokers.devnull",
        "InMemoryMessageBroker": "cqrs_sync.message_brokers.memory",
        "Message": "cqrs_sync.message_brokers.protocol",
        "MessageBroker": "cqrs_sync.message_brokers.protocol",
        "MessageRejected": "cqrs_sync.message_brokers.protocol",
    },
)
