"""The async library's name for the default container adapter."""

from __future__ import annotations

from cqrs_sync.container.punq import PunqContainer

DIContainer = PunqContainer

__all__ = ("DIContainer",)
