"""The contract of :class:`~cqrs_sync.container.protocol.Container`."""

from __future__ import annotations

import abc
from typing import Any

from cqrs_sync.container.protocol import SupportsPlans, SupportsScope


class Service:
    """What the container under test has registered as transient."""


class Consumer:
    """A class that asks for the service; adapters that make plans need not be told of it."""

    def __init__(self, service: Service) -> None:
        self.service = service


class ContainerContract(abc.ABC):
    """What every container does. Derive a test class from it and return a container from :meth:`make`."""

    @abc.abstractmethod
    def make(self) -> Any:
        """Return a container with :class:`Service` registered as transient, and :class:`Consumer` if it must be."""

    def test_a_transient_is_new_each_time(self) -> None:
        """Handlers belong to one call."""
        container = self.make()
        assert isinstance(container.resolve(Service), Service)
        assert container.resolve(Service) is not container.resolve(Service)

    def test_dependencies_are_injected(self) -> None:
        """By the constructor's annotations."""
        consumer = self.make().resolve(Consumer)
        assert isinstance(consumer.service, Service)

    def test_plans_build_what_resolve_does(self) -> None:
        """With the services of a unit of work before the container's own."""
        container = self.make()
        if not isinstance(container, SupportsPlans):
            return
        own = Service()
        assert isinstance(container.plan(Consumer, {}).build().service, Service)
        assert container.plan(Consumer, {Service: lambda: own}).build().service is own
        assert container.is_shared(Service) is False

    def test_a_scope_is_a_new_container(self) -> None:
        """So that concurrent sends share nothing."""
        container = self.make()
        if not isinstance(container, SupportsScope):
            return
        with container.open_scope() as one, container.open_scope() as two:
            assert one is not two
            assert id(one) != id(container)
            assert isinstance(one.resolve(Service), Service)
