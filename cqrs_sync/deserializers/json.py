"""Models out of JSON."""

from __future__ import annotations

import logging
from typing import Any, Generic, Protocol, Self, TypeVar

from pydantic_core import from_json

from cqrs_sync.deserializers.exceptions import DeserializeJsonError
from cqrs_sync.errors import ConfigurationError, type_name
from cqrs_sync.serializers.exceptions import explain
from cqrs_sync.serializers.json import from_dict_of

logger = logging.getLogger(__name__)


class Deserializable(Protocol):
    """A class that builds itself from a dictionary; every request, response and event is one."""

    @classmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Return the instance with these fields."""
        ...


_T = TypeVar("_T", bound=Deserializable)


class JsonDeserializer(Generic[_T]):
    """Reads a JSON object and hands its fields to ``model.from_dict()``.

    The model may be parameterised (``NotificationEvent[Joined]``), as a pydantic model and as a dataclass: the
    payload is then built too. Never raises for what it reads: see :class:`DeserializeJsonError`. One instance
    serves every thread at once.

    >>> from cqrs_sync.events.event import NotificationEvent
    >>> read = JsonDeserializer(NotificationEvent[dict[str, int]])
    >>> read('{"event_name": "joined", "payload": {"user": 1}}').payload
    {'user': 1}
    >>> read('{"event_name": "joined"}').error_message
    'payload: Field required'
    """

    def __init__(self, model: type[_T]) -> None:
        if not callable(getattr(model, "from_dict", None)):
            raise ConfigurationError(f"{type_name(model)} needs a classmethod from_dict(**fields) to be read from JSON")
        self._model = model
        self._from_dict = from_dict_of(model)

    def __call__(self, data: str | bytes | None) -> _T | DeserializeJsonError | None:
        """Return the model, None for None (a tombstone), or what was wrong."""
        if data is None:
            return None
        try:
            content = from_json(data)
            if not isinstance(content, dict):
                raise ValueError(f"the JSON is of a {type(content).__name__}, not of an object")
            return self._from_dict(**content)
        except Exception as error:
            failure = DeserializeJsonError(explain(error), type(error), data)
        logger.error("Message is not the JSON of %s: %s", type_name(self._model), failure.error_message)
        logger.debug("The message was %r", data)
        return failure
