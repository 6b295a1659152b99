"""Where handlers and their dependencies come from."""

from cqrs_sync.container.di import DIContainer
from cqrs_sync.container.protocol import Container, SupportsScope
from cqrs_sync.container.punq import PunqContainer
from cqrs_sync.container.scope import ScopeAwareContainer, ScopeStrategy, bind_scope, current_container, enter_scope

__all__ = (
    "Container",
    "DIContainer",
    "PunqContainer",
    "ScopeAwareContainer",
    "ScopeStrategy",
    "SupportsScope",
    "bind_scope",
    "current_container",
    "enter_scope",
)
