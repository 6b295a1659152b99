"""Responses: what a request's handler answers."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import pydantic

from cqrs_sync.models import DataclassMessage, PydanticMessage


class IResponse(abc.ABC):
    """The interface of a response; a handler may also answer with any other object, or None."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Build the response from its fields."""


class PydanticResponse(PydanticMessage, pydantic.BaseModel, IResponse):
    """A response as a pydantic model; the default, also called ``Response``."""


@dataclasses.dataclass
class DCResponse(DataclassMessage, IResponse):
    """A response as a dataclass."""


Response = PydanticResponse

__all__ = ("DCResponse", "IResponse", "PydanticResponse", "Response")
