"""What diagrams in Mermaid's language are made of: labels, identifiers, boxes, and text that is no syntax."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydantic

from cqrs_sync.generics import type_arguments

INDENT = "    "


def indented(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines one level deeper."""
    return (INDENT + line for line in lines)


def escaped(text: str) -> str:
    """Return any text as one line that Mermaid shows as it is: what may be syntax, or HTML, becomes its code.

    >>> escaped("a; b #1 <br>")
    'a#59; b #35;1 #60;br#62;'
    """
    return re.sub(r"[^\w .,:()\[\]/=!?*@|'+-]", lambda found: f"#{ord(found[0])};", " ".join(text.split()))


class Names:
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
        """What other lines of a class diagram call the class."""
        return self._ids[cls]

    def label(self, cls: type) -> str:
        """What a reader calls the class."""
        return escaped(self._labels[cls])

    def declaration(self, cls: type) -> str:
        """What introduces a class: its identifier, and its label where that says more."""
        return self.id(cls) if self.id(cls) == self.label(cls) else f'{self.id(cls)}["{self.label(cls)}"]'


def box(names: Names, cls: type, members: Iterable[str]) -> list[str]:
    """Return the lines of a class in a class diagram."""
    opening, inside = f"class {names.declaration(cls)}", list(indented(members))
    return [f"{opening} {{", *inside, "}"] if inside else [opening]


def fields(message: type) -> list[str]:
    """Return the members that a message or context is drawn with."""
    return [f"+{name}: {_type_text(annotation)}" for name, annotation in _fields(message)]


def uses(cls: type, origin: type, verbs: Sequence[str]) -> list[tuple[type, str]]:
    """Return the classes that the type arguments of a class name, each with what the class does with it.

    Args:
        origin: the generic class whose arguments they are.
        verbs: one for each argument.
    """
    return [
        (used, verb)
        for argument, verb in zip(type_arguments(cls, origin), verbs, strict=False)
        for used in (typing.get_args(argument) if _is_union(argument) else [argument])
        if isinstance(used, type) and used is not Any and used.__module__ != "builtins"
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
