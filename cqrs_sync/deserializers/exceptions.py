"""What a deserializer returns where it has no model to return.

They are values, not exceptions: a consumer decides about a poison message in its own flow, and a loop over a batch
does not end at the first one.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DeserializeJsonError:
    """Bytes that are not the JSON of the model.

    Attributes:
        error_message: what was wrong, by field where it can be told, without the values.
        error_type: the class of the exception.
        message_data: the bytes as received; kept out of the repr, so that logging the error does not log them.
    """

    error_message: str
    error_type: type[Exception]
    message_data: str | bytes | None = field(repr=False)


@dataclass(frozen=True)
class DeserializeProtobufError:
    """Bytes that are not the protobuf message of the model.

    Attributes:
        error_message: what was wrong, without the values.
        error_type: the class of the exception.
        message_data: the bytes as received; kept out of the repr, so that logging the error does not log them.
    """

    error_message: str
    error_type: type[Exception]
    message_data: str | bytes | None = field(repr=False)
