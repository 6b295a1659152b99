"""Tests for your own implementations of the ports: derive a class and return one object; pytest does the rest.

>>> from cqrs_sync.testing.message_broker import MessageBrokerContract
>>> from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
>>> class TestMyBroker(MessageBrokerContract):
...     def make(self) -> InMemoryMessageBroker:
...         return InMemoryMessageBroker()
"""
