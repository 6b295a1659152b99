"""Where handlers and their dependencies come from."""

from typing import TYPE_CHECKING

from cqrs_sync.container.protocol import Container, SupportsScope
from cqrs_sync.container.scope import ScopeAwareContainer, ScopeStrategy, bind_scope, current_container, enter_scope
from cqrs_sync.lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from cqrs_sync.container.di import DIContainer as DIContainer
    from cqrs_sync.container.punq import PunqContainer as PunqContainer
else:
    __getattr__, __dir__ = _lazy_names(
        __name__, {"DIContainer": "cqrs_sync.container.di", "PunqContainer": "cqrs_sync.container.punq"}
    )

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
