"""Requests as pydantic models; :mod:`cqrs_sync.requests.request` offers them and loads this module on first use."""

from __future__ import annotations

from typing import Generic

import pydantic

from cqrs_sync.models import PydanticMessage
from cqrs_sync.requests.request import IRequest
from cqrs_sync.types import ResT


class PydanticRequest(PydanticMessage, pydantic.BaseModel, IRequest[ResT], Generic[ResT]):
    """A request as a pydantic model; the default, also called ``Request``.

    >>> class GetUser(PydanticRequest[str]):
    ...     user_id: int
    >>> GetUser(user_id=7).to_dict()
    {'user_id': 7}
    """


Request = PydanticRequest

__all__ = ("PydanticRequest", "Request")
