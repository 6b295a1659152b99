"""Reads the type arguments of a class: that ``GetUserHandler`` is a ``RequestHandler[GetUser, User]``."""

from __future__ import annotations

import typing
from typing import Any


def type_arguments(cls: type, origin: type) -> tuple[Any, ...]:
    """The arguments that ``cls`` gives to the generic class ``origin``, through any number of bases.

    Returns:
        as many as could be read; empty where ``cls`` names none. An argument may still be a type variable.
    """
    for base in getattr(cls, "__orig_bases__", ()):
        base_origin = typing.get_origin(base)
        arguments = typing.get_args(base)
        if base_origin is origin:
            return arguments
        if isinstance(base_origin, type) and issubclass(base_origin, origin):
            inherited = type_arguments(base_origin, origin)
            given = dict(zip(getattr(base_origin, "__parameters__", ()), arguments, strict=False))
            return tuple(given.get(argument, argument) for argument in inherited)
    for base in cls.__bases__:
        if issubclass(base, origin) and (arguments := type_arguments(base, origin)):
            return arguments
    return ()


def concrete_argument(cls: type, origin: type, position: int = 0) -> type | None:
    """The class that ``cls`` names at ``position`` of ``origin``, or None where it names no plain class."""
    arguments = type_arguments(cls, origin)
    argument = arguments[position] if len(arguments) > position else None
    # Any is a class too.
    return argument if isinstance(argument, type) and argument is not Any else None
