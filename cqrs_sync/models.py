"""The two ways to write a message class, pydantic models and dataclasses: a pair of dictionary methods for each.

Both are mixins without fields, so that mutable requests and frozen events share them. And a quick way to change frozen
dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Self, TypeVar

import pydantic

_InstanceT = TypeVar("_InstanceT")


def changed(instance: _InstanceT, **changes: Any) -> _InstanceT:
    """Return a copy of a frozen dataclass of ours with other values in some fields.

    For what each step of a saga does: ``dataclasses.replace`` takes much longer, because it calls
    ``__init__``, which in a frozen class sets each field by a function call. No field is checked.
    """
    copy = object.__new__(type(instance))
    vars(copy).update(vars(instance), **changes)
    return copy


class PydanticMessage:
    """The methods of a message that is a pydantic model: validated when it is built."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary of Python values (nested models become dictionaries)."""
        model: Any = self
        fields: dict[str, Any] = model.model_dump(mode="python")
        return fields

    @classmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Build the message from its fields, by name or alias; texts become UUIDs and dates where the field says so.

        Raises:
            pydantic.ValidationError: a field is missing or does not fit.
        """
        model: Any = cls
        message: Self = model.model_validate(kwargs, by_alias=True, by_name=True)
        return message


class DataclassMessage:
    """The methods of a message that is a standard dataclass: cheap to build, not validated by its constructor."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary, nested dataclasses included (values are deep copies)."""
        instance: Any = self
        return dataclasses.asdict(instance)

    @classmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Build the message from its fields; nested dataclasses, UUIDs and dates are restored from their text.

        Raises:
            pydantic.ValidationError: a field is missing or does not fit.
        """
        message_type: Any = cls
        message: Self = _adapter(message_type).validate_python(kwargs)
        return message


@functools.cache
def _adapter(message_type: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(message_type)
