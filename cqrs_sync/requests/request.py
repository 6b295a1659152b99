"""Requests: commands and queries, named in the imperative (``PlaceOrder``, ``GetUserByEmail``)."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Generic, Self

import pydantic

from cqrs_sync.models import DataclassMessage, PydanticMessage
from cqrs_sync.types import ReqT, ResT


class IRequest(abc.ABC, Generic[ResT]):
    """The interface of a request; derive from it to bring a class of your own.

    ``IRequest[Result]`` says what the request is answered with, and ``mediator.send(request)`` returns that
    ``Result`` for mypy and pyright. A plain ``IRequest`` is answered with ``Any``.
    """

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Build the request from its fields."""


class PydanticRequest(PydanticMessage, pydantic.BaseModel, IRequest[ResT], Generic[ResT]):
    """A request as a pydantic model; the default, also called ``Request``.

    >>> class GetUser(PydanticRequest[str]):
    ...     user_id: int
    >>> GetUser(user_id=7).to_dict()
    {'user_id': 7}
    """


@dataclasses.dataclass
class DCRequest(DataclassMessage, IRequest[ResT], Generic[ResT]):
    """A request as a dataclass.

    >>> @dataclasses.dataclass
    ... class GetUser(DCRequest[str]):
    ...     user_id: int
    >>> GetUser.from_dict(user_id=7)
    GetUser(user_id=7)
    """


Request = PydanticRequest

__all__ = ("DCRequest", "IRequest", "PydanticRequest", "ReqT", "Request", "ResT")
