"""What the maps have in common: a key is bound once and never taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cqrs_sync.errors import DuplicateHandler, HandlerTypeError, type_name
from cqrs_sync.generics import concrete_argument

_K = TypeVar("_K")
_V = TypeVar("_V")


class Bindings(dict[_K, _V]):
    """A dictionary whose keys can be added but neither replaced nor deleted.

    Not thread-safe: bind at start-up.
    """

    def __init__(self, bindings: Mapping[_K, _V] | None = None) -> None:
        super().__init__()
        for key, value in (bindings or {}).items():
            self[key] = value

    def __setitem__(self, key: _K, value: _V) -> None:
        if key in self:
            raise DuplicateHandler(key, value, "bind each key once")
        super().__setitem__(key, value)

    def __delitem__(self, key: _K) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no delete method")

    if not TYPE_CHECKING:  # the signatures of dict stay for type checkers

        def _refuse(self, *_: Any, **__: Any) -> NoReturn:
            raise TypeError(f"{type(self).__name__} only takes bind()")

        update = setdefault = pop = popitem = clear = __ior__ = _refuse


def check_message_type(message_type: Any, root: type, error: type[HandlerTypeError]) -> None:
    """Check that a key is a class of messages, not an alias that no object can have as its type.

    Raises:
        HandlerTypeError: of the class ``error``.
    """
    if isinstance(message_type, type) and issubclass(message_type, root):
        return
    raise error(
        f"{type_name(message_type)} must be a subclass of {root.__name__} (derive a class from a generic alias first)",
        message_type,
    )


def check_handles(handler: type, kind: type, message_type: type, error: type[HandlerTypeError]) -> None:
    """Check that a handler that names what it handles was not bound to something else.

    Raises:
        HandlerTypeError: of the class ``error``.
    """
    handled = concrete_argument(handler, kind)
    if handled is not None and not issubclass(message_type, handled):
        raise error(
            f"{type_name(handler)} handles {type_name(handled)} and cannot be bound to {type_name(message_type)}",
            handler,
        )
