"""Tests that your own implementations of the ports can run: derive a class, return one object, and pytest does the rest.

>>> from cqrs_sync.testing.message_broker import MessageBrokerContract
>>> from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
>>> class TestMyBroker(MessageBrokerContract):
...     def make(self) -> InMemoryMessageBroker:
...         return InMemoryMessageBroker()
"""
