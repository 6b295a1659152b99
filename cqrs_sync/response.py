"""Responses: what a request's handler answers."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, Self

from cqrs_sync.lazy import lazy_names
from cqrs_sync.models import DataclassMessage

if TYPE_CHECKING:
    from cqrs_sync.pydantic_response import PydanticResponse as PydanticResponse
    from cqrs_sync.pydantic_response import Response as Response
else:  # the first model makes pydantic load most of itself
    __getattr__, __dir__ = lazy_names(
        __name__, dict.fromkeys(("PydanticResponse", "Response"), "cqrs_sync.pydantic_response")
    )


class IResponse(abc.ABC):
    """The interface of a response; a handler may also answer with any other object, or None."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Build the response from its fields."""


@dataclasses.dataclass
class DCResponse(DataclassMessage, IResponse):
    """A response as a dataclass."""


__all__ = ("DCResponse", "IResponse", "PydanticResponse", "Response")
