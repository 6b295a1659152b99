"""Names at package level have their real types, and misspelled ones are errors."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

import pytest

import cqrs_sync as cqrs
from cqrs_sync import container, dispatcher, events, message_brokers, requests, unit_of_work
from cqrs_sync.container.punq import PunqContainer
from cqrs_sync.dispatcher.request import RequestDispatcher
from cqrs_sync.message_brokers.devnull import DevnullMessageBroker
from cqrs_sync.unit_of_work.memory import MemoryUnitOfWork


def test_names_of_packages_are_typed() -> None:
    """They are the classes themselves, for type checkers too, though loaded on first use."""
    assert_type(events.EventMap, type[cqrs.EventMap])
    assert_type(requests.RequestMap, type[cqrs.RequestMap])
    assert_type(container.PunqContainer, type[PunqContainer])
    assert_type(dispatcher.RequestDispatcher, type[RequestDispatcher])
    assert_type(message_brokers.DevnullMessageBroker, type[DevnullMessageBroker])
    assert_type(unit_of_work.MemoryUnitOfWork, type[MemoryUnitOfWork])


def test_misspelled_name_is_an_error() -> None:
    """At run time and for type checkers: the package does not claim to have every name."""
    with pytest.raises(AttributeError):
        cqrs.RequestMediatr  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(AttributeError):
        events.EventMapp  # type: ignore[attr-defined] # noqa: B018
