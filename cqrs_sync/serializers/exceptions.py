"""What goes wrong between an event and its bytes. No text here carries a payload's values."""

from __future__ import annotations

from typing import Any

from pydantic_core import ValidationError

from cqrs_sync.errors import CQRSError, type_name


class SerializationError(CQRSError):
    """An event that does not become bytes, or bytes that do not become an event.

    Attributes:
        event_type: the class of the event.
    """

    def __init__(self, text: str, event_type: Any) -> None:
        self.event_type = event_type
        super().__init__(text)


class EventNotSerializable(SerializationError, TypeError):
    """An event holds something that its wire format cannot express, or knows no such format.

    Attributes:
        field: the path of the value, ``payload.items[2].price`` say, or None where it was not found.
    """

    def __init__(self, event_type: Any, reason: str, field: str | None = None) -> None:
        self.field = field
        where = f" field {field!r}" if field else ""
        super().__init__(f"{type_name(event_type)}{where} cannot be serialized: {reason}", event_type)


class EventNotReadable(SerializationError, ValueError):
    """Bytes that are not an event of the type they are said to be; reading them again will not help."""

    def __init__(self, event_type: Any, reason: str) -> None:
        super().__init__(f"not readable as {type_name(event_type)}: {reason}", event_type)


def explain(error: Exception) -> str:
    """Return an error's text without the input values that pydantic puts into its own."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, detail['loc'])) or 'event'}: {detail['msg']}" for detail in details)
