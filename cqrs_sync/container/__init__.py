"""Where handlers and their dependencies come from."""

from cqrs_sync.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "Container": "cqrs_sync.container.protocol",
        "DIContainer": "cqrs_sync.container.di",
        "PunqContainer": "cqrs_sync.container.punq",
        "ScopeAwareContainer": "cqrs_sync.container.scope",
        "ScopeStrategy": "cqrs_sync.container.scope",
        "SupportsScope": "cqrs_sync.container.protocol",
        "bind_scope": "cqrs_sync.container.scope",
        "current_container": "cqrs_sync.container.scope",
        "enter_scope": "cqrs_sync.container.scope",
    },
)
