"""Deserializers return the model or say what was wrong, and keep payloads out of the log."""

import dataclasses
import logging
import uuid
from typing import Any, Self

import pydantic
import pytest

from cqrs_sync.deserializers import (
    DeserializeJsonError,
    DeserializeProtobufError,
    JsonDeserializer,
    ProtobufDeserializer,
)
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.events.event import DCNotificationEvent, NotificationEvent
from cqrs_sync.requests.request import Request


class Joined(pydantic.BaseModel):
    user_id: uuid.UUID


@dataclasses.dataclass(frozen=True)
class Left:
    user_id: uuid.UUID


class Ping(Request):
    count: int


USER = "00000000-0000-0000-0000-000000000001"
EVENT = f'{{"event_name": "e", "payload": {{"user_id": "{USER}"}}}}'


class TestJson:
    @pytest.mark.parametrize("data", ['{"count": 1}', b'{"count": 1}'])
    def test_text_and_bytes_become_the_model(self, data: str | bytes) -> None:
        assert JsonDeserializer(Ping)(data) == Ping(count=1)

    def test_nothing_stays_nothing(self) -> None:
        assert JsonDeserializer(Ping)(None) is None

    @pytest.mark.parametrize(
        ("model", "payload"),
        [
            (NotificationEvent[Joined], Joined(user_id=uuid.UUID(int=1))),
            (DCNotificationEvent[Joined], Joined(user_id=uuid.UUID(int=1))),
            (DCNotificationEvent[Left], Left(uuid.UUID(int=1))),
            (NotificationEvent[dict[str, str]], {"user_id": USER}),
            (DCNotificationEvent, {"user_id": USER}),
        ],
    )
    def test_payload_is_built_by_the_models_parameter(self, model: Any, payload: Any) -> None:
        event: Any = JsonDeserializer(model)(EVENT)
        assert event.payload == payload

    def test_from_dict_of_the_users_own_is_used_under_a_parameter_too(self) -> None:
        @dataclasses.dataclass(frozen=True)
        class Renamed(DCNotificationEvent[Any]):
            @classmethod
            def from_dict(cls, **kwargs: Any) -> Self:
                return super().from_dict(event_name="renamed", payload=kwargs["payload"])

        event = JsonDeserializer(Renamed)(EVENT)
        assert isinstance(event, Renamed)
        assert event.event_name == "renamed"

    @pytest.mark.parametrize(
        ("data", "message", "error_type"),
        [
            ("", "EOF", ValueError),
            (b"\xff", "expected value", ValueError),
            ("[1]", "of a list, not of an object", ValueError),
            ("{}", "count: Field required", pydantic.ValidationError),
        ],
    )
    def test_anything_else_comes_back_as_an_error(self, data: Any, message: str, error_type: type) -> None:
        failure = JsonDeserializer(Ping)(data)
        assert isinstance(failure, DeserializeJsonError)
        assert message in failure.error_message
        assert failure.error_type is error_type
        assert failure.message_data == data

    def test_values_are_logged_at_debug_only(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "cqrs_sync.deserializers")
        failure = JsonDeserializer(Ping)('{"count": "s3cret"}')
        assert isinstance(failure, DeserializeJsonError)
        assert "s3cret" not in f"{failure} {failure.error_message}"
        told = [(record.levelname, "s3cret" in record.getMessage()) for record in caplog.records]
        assert told == [("ERROR", False), ("DEBUG", True)]

    def test_model_without_from_dict_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="Joined needs a classmethod from_dict"):
            JsonDeserializer(Joined)  # type: ignore[type-var]


class Proto:
    @classmethod
    def FromString(cls, data: bytes) -> str:  # noqa: N802
        return data.decode()


class Greeting:
    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def from_proto(cls, proto: str) -> Self:
        return cls(proto)


class TestProtobuf:
    def test_bytes_become_the_model(self) -> None:
        greeting = ProtobufDeserializer(Greeting, Proto)(b"hi")
        assert isinstance(greeting, Greeting)
        assert greeting.text == "hi"

    def test_nothing_stays_nothing(self) -> None:
        assert ProtobufDeserializer(Greeting, Proto)(None) is None

    def test_anything_else_comes_back_as_an_error(self, caplog: pytest.LogCaptureFixture) -> None:
        failure = ProtobufDeserializer(Greeting, Proto)(b"\xff s3cret")
        assert isinstance(failure, DeserializeProtobufError)
        assert failure.error_type is UnicodeDecodeError
        assert failure.message_data == b"\xff s3cret"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "s3cret" not in f"{caplog.text} {failure}"
