"""The context that the steps of a saga share, and how a saga ended."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
import json
import reprlib
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Self, TypeAlias

import pydantic
from typing_extensions import TypeVar

from cqrs_sync.errors import ContextNotSerializable, type_name
from cqrs_sync.models import DataclassMessage
from cqrs_sync.saga.storage.enums import SagaStatus


@dataclasses.dataclass
class SagaContext(DataclassMessage):
    """What the steps of a saga work on; derive a dataclass from it.

    It is stored as JSON with each step, under the names of its fields, and restored by pydantic from the annotations:
    nested dataclasses and models, UUIDs, dates, decimals, enums and sets come back as they were. A field that was added
    since needs a default; one that is gone is ignored.

    >>> @dataclasses.dataclass
    ... class OrderContext(SagaContext):
    ...     order_id: str
    ...     reservation_id: str | None = None
    >>> OrderContext.from_dict({"order_id": "o1"})
    OrderContext(order_id='o1', reservation_id=None)
    """

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """Build a context from its fields, as a dictionary or as keywords."""
        return super().from_dict(**{**(fields or {}), **more})

    def model_dump(self) -> dict[str, Any]:
        """Return all fields as a dictionary; the async library's name for :meth:`to_dict`."""
        return self.to_dict()


ContextT = TypeVar("ContextT", bound=SagaContext, default=Any)
"""The context that a saga and its steps work on."""

ContextSource: TypeAlias = type[ContextT] | Callable[[dict[str, Any]], ContextT]
"""What makes a context of a stored one: its class, or a function that gets the stored fields."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SagaOutcome(Generic[ContextT]):
    """How a saga ended, for callers who want the end alone.

    Attributes:
        saga_id: its id.
        status: how far it has come. RUNNING: a step past the pivot has failed and is tried again by recovery.
        context: as the last step has left it.
        results: of the steps that this call has run, in the order in which they were completed.
        error: what a step has failed with; None where nothing has failed.
    """

    saga_id: uuid.UUID
    status: SagaStatus
    context: ContextT
    results: tuple[Any, ...] = ()
    error: Exception | None = None

    @property
    def completed(self) -> bool:
        """Whether every step is done."""
        return self.status is SagaStatus.COMPLETED

    def raise_for_status(self) -> Self:
        """Raise what a step has failed with; returns the outcome of a saga that was completed."""
        if self.error is not None:
            raise self.error
        return self


def encode(context: SagaContext) -> str:
    """Return a context as JSON.

    Raises:
        ContextNotSerializable: naming the field.
    """
    try:
        return adapter(type(context)).dump_json(context, warnings=False).decode()
    except Exception as error:
        field = _culprit(context)
        reason = str(error).partition("\n")[0]
        raise ContextNotSerializable(type(context), field, f"{reason}. Use a type that pydantic can write") from error


def decode(context_type: type[ContextT], text: str) -> ContextT:
    """Return the context of a JSON text.

    Raises:
        pydantic.ValidationError: a field is missing or does not fit.
    """
    context: ContextT = adapter(context_type).validate_json(text)
    return context


def read(source: ContextSource[ContextT], text: str) -> ContextT:
    """Return the context of a JSON text, made by its class or by a function.

    Raises:
        pydantic.ValidationError: a field is missing or does not fit.
        Exception: whatever the function raises.
    """
    make: Any = source
    context: ContextT = decode(make, text) if isinstance(source, type) else make(json.loads(text))
    return context


def checked_text(context: SagaContext) -> str:
    """Return a context as JSON that restores it: what is read again is equal, and of the same types.

    Cheap enough to be done whenever a context is stored that has changed. The types must be the same because equal
    values need not work alike: a ``Decimal`` in a ``float`` field would be a float for whoever takes the saga on.

    Raises:
        ContextNotSerializable: naming the field that cannot be written, or would come back as something else.
    """
    context_type: Any = type(context)
    text = encode(context)
    try:
        restored = decode(context_type, text)
    except Exception as error:
        raise _unreadable(context, error) from error
    for name in _field_names(context_type):
        before, after = getattr(context, name), getattr(restored, name)
        if not _is_same(before, after):
            remedy = "annotate the field with what it holds"
            raise ContextNotSerializable(context_type, name, f"{_change(before, after)}: {remedy}")
    return text


@functools.cache
def _field_names(context_type: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(context_type))


_VALUES = frozenset(
    {
        *(type(None), bool, int, float, str, bytes),
        *(decimal.Decimal, uuid.UUID, datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
    }
)
"""What has no parts, and says by itself whether it is equal; most fields hold one."""


def _is_same(before: Any, after: Any) -> bool:
    """Whether values are equal, and those inside of them of the same types."""
    kind, kind_after = type(before), type(after)
    if kind is kind_after:
        if kind in _VALUES:
            return bool(before == after)
        if _has_identity(kind) and not dataclasses.is_dataclass(kind):
            return True  # there is nothing to compare
    elif not issubclass(kind, kind_after) and (kind, kind_after) != (int, float):  # an int may be given for a float
        return False
    try:
        is_equal = _has_identity(kind) or bool(before == after)
        return is_equal and all(_is_same(*pair) for pair in _parts(before, after))
    except Exception:  # whatever a class does when it is compared
        return False


def _has_identity(kind: Any) -> bool:
    """Whether objects of a class are equal to themselves alone."""
    return kind.__eq__ is object.__eq__


def _parts(before: Any, after: Any) -> Iterable[tuple[Any, Any]]:
    """What is inside of two values of which the one is an image of the other."""
    if isinstance(before, list | tuple):
        return zip(before, after, strict=True)
    if isinstance(before, Mapping):
        return ((value, after[key]) for key, value in before.items())
    if isinstance(before, pydantic.BaseModel):
        return _parts(vars(before), vars(after))
    if dataclasses.is_dataclass(before):
        names = [field.name for field in dataclasses.fields(before) if field.compare]
        return ((getattr(before, name), getattr(after, name)) for name in names)
    return ()


def _change(before: Any, after: Any) -> str:
    """What becomes of a value, in words; short, as it may be long."""
    kind, kind_after = (type_name(type(value)) for value in (before, after))
    pair = f"{reprlib.repr(before)} as {reprlib.repr(after)}"
    if kind != kind_after:
        return f"the {kind} would come back as a {kind_after} ({pair})"
    return f"its value would change ({pair})"


def _unreadable(context: SagaContext, error: Exception) -> ContextNotSerializable:
    """The error for a context that can be written, and not read."""
    if not isinstance(error, pydantic.ValidationError):
        return ContextNotSerializable(type(context), "(all)", f"it would not be read again: {error}")
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "(all)"
    value = reprlib.repr(getattr(context, field, None))
    written = f"{value}, which is written as {reprlib.repr(first['input'])}, would not be read again"
    return ContextNotSerializable(type(context), field, f"{written}: {first['msg']}")


def _adapter(context_type: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(context_type)


adapter: Callable[[Any], pydantic.TypeAdapter[Any]] = functools.cache(_adapter)
"""What writes and reads contexts of a class; made once."""


def _culprit(context: SagaContext) -> str:
    """The name of the first field that cannot be written."""
    try:
        hints = typing.get_type_hints(type(context), include_extras=True)
    except NameError:  # an annotation for type checkers only
        hints = {}
    for field in dataclasses.fields(context):
        try:
            pydantic.TypeAdapter(hints.get(field.name, Any)).dump_json(getattr(context, field.name), warnings=False)
        except Exception:
            return field.name
    return "(all)"
