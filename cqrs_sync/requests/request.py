"""Requests: commands and queries, named in the imperative (``PlaceOrder``, ``GetUserByEmail``)."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, Generic, Self

from cqrs_sync.lazy import lazy_names
from cqrs_sync.models import DataclassMessage
from cqrs_sync.types import ReqT, ResT

if TYPE_CHECKING:
    from cqrs_sync.requests.pydantic_request import PydanticRequest as PydanticRequest
    from cqrs_sync.requests.pydantic_request import Request as Request
else:  # the first model makes pydantic load most of itself
    __getattr__, __dir__ = lazy_names(
        __name__, dict.fromkeys(("PydanticRequest", "Request"), "cqrs_sync.requests.pydantic_request")
    )


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


@dataclasses.dataclass
class DCRequest(DataclassMessage, IRequest[ResT], Generic[ResT]):
    """A request as a dataclass.

    >>> @dataclasses.dataclass
    ... class GetUser(DCRequest[str]):
    ...     user_id: int
    >>> GetUser.from_dict(user_id=7)
    GetUser(user_id=7)
    """


__all__ = ("DCRequest", "IRequest", "PydanticRequest", "ReqT", "Request", "ResT")
