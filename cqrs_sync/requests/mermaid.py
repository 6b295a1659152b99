"""Draws a chain of responsibility as Mermaid diagrams, for documentation that follows the code."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from cqrs_sync.errors import RequestHandlerTypeError, type_name
from cqrs_sync.generics import type_arguments
from cqrs_sync.requests.cor_request_handler import CORRequestHandler

_INDENT = "    "


class CoRMermaid:
    """The chain that ``map.bind(request, handlers)`` would make, as text for a Mermaid renderer.

    Classes of the same name are told apart by their module.

    Raises:
        RequestHandlerTypeError: one of the handlers is not a ``CORRequestHandler`` class.

    Example:
        >>> import cqrs_sync as cqrs
        >>> from cqrs_sync.requests.cor_request_handler import CORRequestHandler
        >>> class Pay(cqrs.Request[str]):
        ...     amount: int
        >>> class PayByCard(CORRequestHandler[Pay, str]):
        ...     def handle(self, request: Pay) -> str | None:
        ...         return self.next(request)
        >>> print(CoRMermaid([PayByCard]).sequence())
        sequenceDiagram
            participant M as Mediator
            participant H1 as PayByCard
            M->>H1: handle(request)
            alt PayByCard answers
                H1-->>M: response
            else nobody is left to ask
                H1-->>M: None
            end
    """

    def __init__(self, handlers: Sequence[type[CORRequestHandler[Any, Any]]]) -> None:
        candidates: Sequence[Any] = handlers
        for handler in candidates:
            if not (isinstance(handler, type) and issubclass(handler, CORRequestHandler)):
                raise RequestHandlerTypeError(f"{type_name(handler)} is no CORRequestHandler class", handler)
        self._handlers = tuple(handlers)

    def sequence(self) -> str:
        """Return a sequence diagram of the request going down the chain until a handler answers."""
        names = _Names(self._handlers)
        lines = ["sequenceDiagram", f"{_INDENT}participant M as Mediator"]
        for position, handler in enumerate(self._handlers, start=1):
            lines.append(f"{_INDENT}participant H{position} as {names.label(handler)}")
        if self._handlers:
            lines.append(f"{_INDENT}M->>H1: handle(request)")
            lines.extend(_INDENT + line for line in self._links(names, 1))
        else:
            lines.append(f"{_INDENT}Note over M: the chain has no handlers")
        return "\n".join(lines)

    def class_diagram(self) -> str:
        """Return a class diagram of the handlers, their order, and the fields of what they take and answer."""
        uses = {handler: _uses(handler) for handler in self._handlers}
        messages = list(dict.fromkeys(message for used in uses.values() for message, _ in used))
        names = _Names([CORRequestHandler, *self._handlers, *messages])
        lines = ["classDiagram"]
        lines += _box(names, CORRequestHandler, ["<<abstract>>", "+handle(request)", "+next(request)", "+events"])
        for handler in uses:
            lines += _box(names, handler, ["+handle(request)", "+events"])
        for message in messages:
            fields = [f"+{name}: {_type_text(annotation)}" for name, annotation in _fields(message)]
            lines += _box(names, message, fields)
        lines += self._relations(names, uses)
        return "\n".join(line if line == "classDiagram" else _INDENT + line for line in lines)

    def _links(self, names: _Names, position: int) -> Iterator[str]:
        yield f"alt {names.label(self._handlers[position - 1])} answers"
        yield f"{_INDENT}H{position}-->>M: response"
        if position == len(self._handlers):
            yield "else nobody is left to ask"
            yield f"{_INDENT}H{position}-->>M: None"
        else:
            yield "else it passes the request on"
            yield f"{_INDENT}H{position}->>H{position + 1}: next(request)"
            yield from (_INDENT + line for line in self._links(names, position + 1))
        yield "end"

    def _relations(self, names: _Names, uses: dict[Any, list[tuple[type, str]]]) -> Iterator[str]:
        for handler in uses:
            yield f"{names.id(CORRequestHandler)} <|-- {names.id(handler)}"
        for handler, following in zip(self._handlers, self._handlers[1:], strict=False):
            yield f"{names.id(handler)} --> {names.id(following)} : next"
        for handler, used in uses.items():
            yield from (f"{names.id(handler)} ..> {names.id(message)} : {verb}" for message, verb in used)


class _Names:
    """A label for each class, and an identifier that is Mermaid's; neither is given twice."""

    def __init__(self, classes: Sequence[type]) -> None:
        distinct = list(dict.fromkeys(classes))
        names = [cls.__name__ for cls in distinct]
        self._labels = {
            cls: cls.__name__ if names.count(cls.__name__) == 1 else f"{cls.__module__}.{cls.__qualname__}"
            for cls in distinct
        }
        self._ids: dict[type, str] = {}
        for cls in distinct:
            name = re.sub(r"\W+", "_", cls.__name__, flags=re.ASCII)
            if name[0].islower():  # "note" and "link" are Mermaid's keywords, all of which are in lower case
                name = f"C_{name}"
            taken = set(self._ids.values())
            numbered = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
            self._ids[cls] = next(free for free in numbered if free not in taken)

    def id(self, cls: type) -> str:
        return self._ids[cls]

    def label(self, cls: type) -> str:
        return self._labels[cls]

    def declaration(self, cls: type) -> str:
        """What introduces a class: its identifier, and its label where that says more."""
        return self.id(cls) if self.id(cls) == self.label(cls) else f'{self.id(cls)}["{self.label(cls)}"]'


def _box(names: _Names, cls: type, members: list[str]) -> list[str]:
    opening = f"class {names.declaration(cls)}"
    return [f"{opening} {{", *(_INDENT + member for member in members), "}"] if members else [opening]


def _uses(handler: type) -> list[tuple[type, str]]:
    """The classes that a handler's type parameters name, each with what the handler does with it."""
    arguments = type_arguments(handler, CORRequestHandler)
    return [
        (cls, verb)
        for argument, verb in zip(arguments, ("takes", "answers"), strict=False)
        for cls in (typing.get_args(argument) if _is_union(argument) else [argument])
        if isinstance(cls, type) and cls.__module__ != "builtins"
    ]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _fields(message: type) -> list[tuple[str, Any]]:
    if issubclass(message, pydantic.BaseModel):
        return [(name, field.annotation) for name, field in message.model_fields.items()]
    if not dataclasses.is_dataclass(message):
        return []
    try:
        hints = typing.get_type_hints(message)
    except NameError:  # an annotation for type checkers only
        hints = {}
    return [(field.name, hints.get(field.name, field.type)) for field in dataclasses.fields(message)]


def _type_text(annotation: Any) -> str:
    """An annotation without module names and without what Mermaid takes for syntax."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        text = annotation.__name__
    else:
        text = re.sub(r"(\w+\.)+(?=\w)", "", str(annotation))
    return re.sub(r"[{}<>~\"();]", "", text)
