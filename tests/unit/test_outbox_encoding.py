"""Between events and rows."""

from __future__ import annotations

import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from cqrs_sync.compressors import ZlibCompressor
from cqrs_sync.errors import ConfigurationError, EventNotStorable
from cqrs_sync.events.event import DCNotificationEvent, NotificationEvent
from cqrs_sync.outbox.encoding import PARTITIONS, EventEncoder, compression_name, partition_of
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.testing.outbox import EVENTS, Numbered


def stored(encoder: EventEncoder, event: Any, **changes: Any) -> Any:
    """A row as the table returns it."""
    more = {"id": 1, "attempts": 0, "last_error": None}
    return SimpleNamespace(**(encoder.encode(event) | more | changes))


class Reversing:
    """A compressor without a name of its own."""

    def compress(self, value: bytes) -> bytes:
        return value[::-1]

    decompress = compress


class TheLongNameOfACompressor(Reversing):
    pass


def test_the_map_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever gives none."""
    monkeypatch.setattr(OutboxedEventMap, "_shared", None)
    OutboxedEventMap.register("numbered", Numbered)
    assert EventEncoder().encode(Numbered(payload=1))["event_name"] == "numbered"


def test_events_of_a_key_share_a_partition_in_every_process() -> None:
    """So the function may never change: rows of two versions would overtake each other."""
    event_id = uuid.UUID(int=1)
    assert partition_of("order-1", event_id) == partition_of("order-1", uuid.uuid4()) == 15
    assert partition_of("ключ", event_id) == 26
    assert partition_of("", event_id) == 0
    assert partition_of(None, event_id) == 3


def test_keys_and_ids_are_spread_over_all_partitions() -> None:
    """Else relays could not share the work."""
    for counts in (
        Counter(partition_of(f"key-{number}", uuid.uuid4()) for number in range(3200)),
        Counter(partition_of(None, uuid.uuid4()) for _ in range(3200)),
    ):
        assert set(counts) == set(range(PARTITIONS))
        assert max(counts.values()) < 200


def test_headers_are_stored_only_where_there_are_some() -> None:
    """As JSON, with any text in it."""
    encoder = EventEncoder(EVENTS)
    assert encoder.encode(Numbered())["headers"] is None
    assert encoder.encode(Numbered(headers={"é": "🦊"}))["headers"] is not None
    assert encoder.decode(stored(encoder, Numbered(headers={"é": "🦊"}))).headers == {"é": "🦊"}
    assert encoder.decode(stored(encoder, Numbered())).headers == {}


def test_the_event_of_a_row_is_decoded_when_it_is_asked_for() -> None:
    """Publishing need not know the type."""
    event = Numbered(payload=5)
    found = EventEncoder(OutboxedEventMap()).decode(stored(EventEncoder(EVENTS), event))
    assert found.defect is None
    assert EventEncoder(EVENTS).decode(stored(EventEncoder(EVENTS), event)).event == event


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"headers": "{"}, "JSONDecodeError"),
        ({"headers": "[]"}, "JSON object"),
        ({"compression": "zlib"}, "not a zlib stream"),
        ({"compression": "lz4"}, "knows zlib: give the repository that compressor"),
        ({"event_id": "no uuid"}, "ValueError"),
        ({"event_id": None}, "TypeError"),
        ({"payload": None}, "TypeError"),
    ],
)
def test_what_is_wrong_with_a_row_is_its_defect(changes: dict[str, Any], reason: str) -> None:
    """And raises nothing: the others of its batch are sound."""
    encoder = EventEncoder(EVENTS)
    found = encoder.decode(stored(encoder, Numbered(), **changes))
    assert found.defect is not None
    assert found.defect.startswith("the row cannot be read: ")
    assert reason in found.defect
    assert found.payload == b""


def test_an_id_may_come_as_a_text_or_as_an_id() -> None:
    """As the driver likes it."""
    encoder, event = EventEncoder(EVENTS), Numbered()
    for given in (event.event_id, str(event.event_id), event.event_id.hex):
        assert encoder.decode(stored(encoder, event, event_id=given)).event_id == event.event_id


def test_payloads_are_compressed_in_the_table_only() -> None:
    """Under the compressor's name, or its class's."""
    event = Numbered(payload=1)
    plain = EventEncoder(EVENTS).encode(event)["payload"]
    for compressor, name in ((ZlibCompressor(), "zlib"), (Reversing(), "Reversing")):
        encoder = EventEncoder(EVENTS, compressor=compressor)
        row = stored(encoder, event)
        assert row.compression == name
        assert row.payload != plain
        assert encoder.decode(row).payload == plain
        assert encoder.decode(stored(EventEncoder(EVENTS), event)).payload == plain


def test_zlib_is_read_by_everybody() -> None:
    """Whatever is written with today."""
    row = stored(EventEncoder(EVENTS, compressor=ZlibCompressor()), Numbered(payload=1))
    assert EventEncoder(EVENTS, compressor=Reversing()).decode(row).defect is None


def test_a_compressors_name_must_fit() -> None:
    """At start-up and not with the first event."""
    assert compression_name(ZlibCompressor()) == "zlib"
    with pytest.raises(ConfigurationError, match="longer than 16 characters"):
        EventEncoder(EVENTS, compressor=TheLongNameOfACompressor())


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("topic", "t" * 250, "has 250 characters, and 249 is the limit"),
        ("topic", "", "is empty"),
        ("partition_key", "k" * 256, "has 256 characters, and 255 is the limit"),
        ("partition_key", "a\0", "holds a NUL"),
        ("partition_key", "\ud800", "half a surrogate pair"),
    ],
)
def test_what_the_table_cannot_hold_is_refused_by_name(field: str, value: str, reason: str) -> None:
    """A ValueError that names the class and the field, not the value."""
    with pytest.raises(EventNotStorable, match=rf"Numbered\.{field} .*{reason}") as caught:
        EventEncoder(EVENTS).encode(Numbered(**{field: value}))
    assert isinstance(caught.value, ValueError)
    assert (caught.value.event_type, caught.value.field) == (Numbered, field)


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": None}])
def test_headers_are_texts(headers: Any) -> None:
    """A dataclass event does not check its own."""
    events = OutboxedEventMap()
    events.register("plain", DCNotificationEvent)
    with pytest.raises(EventNotStorable, match="is not a text"):
        EventEncoder(events).encode(DCNotificationEvent(event_name="plain", payload=1, headers=headers))


def test_a_long_name_is_refused() -> None:
    """Even one that was registered."""
    events = OutboxedEventMap()
    events.register("n" * 256, NotificationEvent[int])
    with pytest.raises(EventNotStorable, match=r"event_name has 256 characters"):
        EventEncoder(events).encode(NotificationEvent[int](event_name="n" * 256, payload=1))
