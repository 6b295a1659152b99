"""Events as JSON, the default wire format."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import pydantic
from pydantic_core import PydanticSerializationError, from_json

from cqrs_sync.models import DataclassMessage
from cqrs_sync.serializers.default import encode_json
from cqrs_sync.serializers.exceptions import EventNotReadable, EventNotSerializable, explain

if TYPE_CHECKING:
    from cqrs_sync.events.event import INotificationEvent

_T = TypeVar("_T")
_DATACLASS_FROM_DICT: Callable[..., Any] = DataclassMessage.from_dict.__func__  # type: ignore[attr-defined]


class JsonEventSerializer:
    """Writes ``event.to_dict()`` as JSON and reads it through ``event_type.from_dict()``.

    JSON knows six types; the annotations of the event's fields bring the others back. UUID, date, time, aware
    datetime, timedelta, Decimal, enum members, nested models, tuples, sets and UTF-8 bytes come back equal where
    they are annotated. What does not come back, or comes back as something else:

    * under ``Any`` or inside of a bare ``dict`` or ``list`` everything stays what JSON has: a UUID a string, a
      Decimal a string, a tuple or set a list, a key that is an int a string;
    * a timezone keeps its offset and loses its name (``Europe/Oslo`` comes back as ``+02:00``);
    * a field of a base class keeps the fields of that class only, whatever subclass it held;
    * bytes that are not UTF-8 are refused; encode them yourself (base64, hex);
    * ``NaN`` and the infinities travel as strings, which other languages may not expect.
    """

    content_type = "application/json"

    def serialize(self, event: INotificationEvent[Any]) -> bytes:
        """Return the event's JSON; raises :class:`EventNotSerializable` naming the field JSON cannot express."""
        content = event.to_dict()
        try:
            return encode_json(content)
        except PydanticSerializationError as error:
            raise EventNotSerializable(type(event), str(error), _culprit(content)) from error

    def content_type_for(self, event: INotificationEvent[Any]) -> str:  # noqa: ARG002 (the port)
        """Return ``application/json`` for every event."""
        return self.content_type

    def deserialize(self, payload: bytes, event_type: type[INotificationEvent[Any]]) -> INotificationEvent[Any]:
        """Return the event; raises :class:`EventNotReadable` for broken JSON and for JSON of something else."""
        try:
            content = from_json(payload)
        except ValueError as error:
            raise EventNotReadable(event_type, str(error)) from error
        if not isinstance(content, dict):
            raise EventNotReadable(event_type, f"the JSON is of a {type(content).__name__}, not of an object")
        try:
            return from_dict_of(event_type)(**content)
        except Exception as error:
            raise EventNotReadable(event_type, explain(error)) from error


def from_dict_of(model: type[_T]) -> Callable[..., _T]:
    """Return ``model.from_dict``, for a parameterised dataclass with the parameter in effect.

    A pydantic model with a parameter is a class of its own. A dataclass with one is an alias whose methods run on
    the bare class, where the payload would stay a dictionary. A ``from_dict`` of the user's own gets the bare class.
    """
    from_dict: Callable[..., _T] = model.from_dict  # type: ignore[attr-defined]
    implementation = getattr(from_dict, "__func__", None)
    if get_origin(model) is not None and implementation is _DATACLASS_FROM_DICT:
        return functools.partial(_DATACLASS_FROM_DICT, model)
    return from_dict


def _culprit(value: Any, parents: frozenset[int] = frozenset()) -> str | None:
    """The path of the innermost value that JSON cannot express, or None if it is ``value`` itself."""
    inside = parents | {id(value)}
    for step, child in _children(value):
        if id(child) in inside:
            return step
        try:
            encode_json(child)
        except PydanticSerializationError:
            deeper = _culprit(child, inside)
            return step + (f"{'' if deeper.startswith('[') else '.'}{deeper}" if deeper else "")
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, each part with the step that leads to it."""
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes | bytearray | memoryview):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif isinstance(value, pydantic.BaseModel):
        yield from ((name, getattr(value, name)) for name in type(value).model_fields)
    elif dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
