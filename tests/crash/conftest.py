"""The fixture, as users get it."""

from cqrs_sync.testing.crash.plugin import crash_kit

__all__ = ("crash_kit",)
