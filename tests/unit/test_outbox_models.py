"""Events of the outbox, and the messages that brokers get."""

from __future__ import annotations

from typing import Any

import pytest

from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.outbox.mock import MockOutboxedEventRepository
from cqrs_sync.outbox.models import EventStatus, Failure
from cqrs_sync.outbox.repository import OutboxedEventRepository
from cqrs_sync.testing.outbox import EVENTS
from tests.unit.outboxes import row


def test_a_new_event_that_was_tried_is_not_produced() -> None:
    """The table knows one status for both."""
    assert row().status is row().event_status is EventStatus.NEW
    assert row(attempts=1).status is EventStatus.NOT_PRODUCED
    assert row(attempts=3, status=EventStatus.DEAD).event_status is EventStatus.DEAD


def test_an_event_shows_no_payload_in_its_repr() -> None:
    """It may be logged."""
    assert repr(row(payload=b"secret")) == "OutboxedEvent(id=1, event_name='numbered', topic='contract', new)"


def test_a_message_has_the_stored_bytes_untouched() -> None:
    """Even where they are no JSON as this library would write it."""
    event = row(payload=b' {"payload":1}', headers={"a": "1"}, partition_key="k")
    message = event.to_message()
    assert isinstance(message, Message)
    assert message.payload_bytes == b' {"payload":1}'
    assert message.payload == {"payload": 1}
    assert (message.message_name, message.topic, message.message_id) == ("numbered", "contract", event.event_id)
    assert (message.headers, message.key, message.content_type) == ({"a": "1"}, "k", "application/json")
    assert message.to_dict()["payload"] == {"payload": 1}


@pytest.mark.parametrize(
    ("content_type", "payload", "expected"),
    [
        (None, b'{"a": 1}', {"a": 1}),
        ("application/json; charset=utf-8", b'{"a": 1}', {"a": 1}),
        ("application/cloudevents+json", b'{"a": 1}', {"a": 1}),
        ("application/json", b"", None),
        ("application/x-protobuf", b"\x08\x01", None),
    ],
)
def test_only_json_becomes_a_payload_object(content_type: str | None, payload: bytes, expected: Any) -> None:
    """Brokers that keep objects get None for the rest; the bytes are there."""
    assert row(content_type=content_type, payload=payload).to_message().payload == expected


@pytest.mark.parametrize(
    ("status", "failures", "produced"),
    [
        (EventStatus.PRODUCED, [], [7]),
        (EventStatus.NOT_PRODUCED, [Failure(7, "marked by hand", 1.0)], []),
        (EventStatus.DEAD, [Failure(7, "marked by hand", None)], []),
        (EventStatus.NEW, [], []),
    ],
)
def test_update_status_notes_what_its_status_means(
    status: EventStatus, failures: list[Failure], produced: list[int]
) -> None:
    """In any repository, by default."""

    class Noting(MockOutboxedEventRepository):
        def __init__(self) -> None:
            super().__init__(event_map=EVENTS)
            self.produced: list[int] = []
            self.failures: list[Failure] = []

        def mark_produced(self, ids: Any) -> None:
            self.produced.extend(ids)

        def mark_failed(self, failures: Any) -> None:
            self.failures.extend(failures)

    repository = Noting()
    OutboxedEventRepository.update_status(repository, 7, status)
    assert (repository.failures, repository.produced) == (failures, produced)
