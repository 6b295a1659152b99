"""JSON for anything the library sends."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json


def encode_json(value: Any) -> bytes:
    """Return ``value`` as compact JSON.

    Raises ``ValueError`` (a ``PydanticSerializationError``) for what JSON cannot express.
    """
    # "strings": JSON has no NaN and no Infinity; pydantic reads these words back into floats, null it would not.
    return to_json(value, inf_nan_mode="strings")


def default_serializer(message: Any) -> bytes:
    """Return an object's JSON: of its ``to_dict()``, else of its ``model_dump()``, else of the object as it is."""
    for method in ("to_dict", "model_dump"):
        as_dict = getattr(message, method, None)
        if callable(as_dict):
            return encode_json(as_dict())
    return encode_json(message)
