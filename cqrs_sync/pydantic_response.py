"""Responses as pydantic models; :mod:`cqrs_sync.response` offers them and loads this module on first use."""

from __future__ import annotations

import pydantic

from cqrs_sync.models import PydanticMessage
from cqrs_sync.response import IResponse


class PydanticResponse(PydanticMessage, pydantic.BaseModel, IResponse):
    """A response as a pydantic model; the default, also called ``Response``."""


Response = PydanticResponse

__all__ = ("PydanticResponse", "Response")
