"""Draws a chain of responsibility as Mermaid diagrams, for documentation that follows the code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cqrs_sync.errors import RequestHandlerTypeError, type_name
from cqrs_sync.mermaid import INDENT, Names, box, fields, indented, uses
from cqrs_sync.requests.cor_request_handler import CORRequestHandler


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
        names = Names(self._handlers)
        lines = ["sequenceDiagram", f"{INDENT}participant M as Mediator"]
        for position, handler in enumerate(self._handlers, start=1):
            lines.append(f"{INDENT}participant H{position} as {names.label(handler)}")
        if self._handlers:
            lines.append(f"{INDENT}M->>H1: handle(request)")
            lines += indented(self._links(names, 1))
        else:
            lines.append(f"{INDENT}Note over M: the chain has no handlers")
        return "\n".join(lines)

    def class_diagram(self) -> str:
        """Return a class diagram of the handlers, their order, and the fields of what they take and answer."""
        used = {handler: uses(handler, CORRequestHandler, ("takes", "answers")) for handler in self._handlers}
        messages = list(dict.fromkeys(message for pairs in used.values() for message, _ in pairs))
        names = Names([CORRequestHandler, *self._handlers, *messages])
        lines = ["classDiagram"]
        lines += box(names, CORRequestHandler, ["<<abstract>>", "+handle(request)", "+next(request)", "+events"])
        for handler in used:
            lines += box(names, handler, ["+handle(request)", "+events"])
        for message in messages:
            lines += box(names, message, fields(message))
        lines += self._relations(names, used)
        return "\n".join(line if line == "classDiagram" else INDENT + line for line in lines)

    def _links(self, names: Names, position: int) -> Iterator[str]:
        yield f"alt {names.label(self._handlers[position - 1])} answers"
        yield f"{INDENT}H{position}-->>M: response"
        if position == len(self._handlers):
            yield "else nobody is left to ask"
            yield f"{INDENT}H{position}-->>M: None"
        else:
            yield "else it passes the request on"
            yield f"{INDENT}H{position}->>H{position + 1}: next(request)"
            yield from indented(self._links(names, position + 1))
        yield "end"

    def _relations(self, names: Names, used: dict[Any, list[tuple[type, str]]]) -> Iterator[str]:
        for handler in used:
            yield f"{names.id(CORRequestHandler)} <|-- {names.id(handler)}"
        for handler, following in zip(self._handlers, self._handlers[1:], strict=False):
            yield f"{names.id(handler)} --> {names.id(following)} : next"
        for handler, pairs in used.items():
            yield from (f"{names.id(handler)} ..> {names.id(message)} : {verb}" for message, verb in pairs)
