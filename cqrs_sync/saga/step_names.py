"""The names by which the log of a saga knows its steps, and those that they had before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cqrs_sync.errors import SagaTypeError, type_name
from cqrs_sync.saga.step import StepType
from cqrs_sync.saga.storage.models import NAME_LENGTH


class StepNames:
    """Gives each place of a step class a name that no other place has.

    Args:
        saga_name: for messages.
        renamed: for old names those of now.

    Raises:
        SagaTypeError: ``renamed`` holds something else.
    """

    def __init__(self, saga_name: str, renamed: Any) -> None:
        names = {} if renamed is None else renamed
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in (*names, *names.values())):
            raise SagaTypeError(
                f'{saga_name}.renamed_steps must map old names to those of now, as in {{"Charge": "ChargeCard"}}, and '
                f"{renamed!r} does not",
                renamed,
            )
        self._saga_name = saga_name
        self._renamed: dict[str, str] = dict(names)
        self._owners: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._given: dict[str, StepType] = {}

    def name(self, step: StepType) -> str:
        """Return the name of the next place of a step class.

        Raises:
            SagaTypeError: it has none, or another class has it.
        """
        given: Any = step.step_name
        base = given if given is not None else step.__name__
        if not isinstance(base, str) or not 0 < len(base) <= NAME_LENGTH - 8 or " & " in base:
            raise SagaTypeError(
                f"{type_name(step)}: {base!r} is no step_name: it has 1 to {NAME_LENGTH - 8} characters, and no ' & '",
                step,
            )
        count = self._counts[base] = self._counts.get(base, 0) + 1
        name = base if count == 1 else f"{base}#{count}"
        for taken in (base, name):
            if self._owners.setdefault(taken, step) is not step:
                raise SagaTypeError(
                    f"{self._saga_name}: {type_name(step)} and {type_name(self._owners[taken])} both have the name "
                    f"{taken!r}: give one of them another step_name",
                    step,
                )
        self._given[name] = step
        return name

    def oldest(self, name: str) -> str:
        """Return the first old name that is declared for a step; its name where there is none."""
        return next((old for old, new in self._renamed.items() if new == name), name)

    def checked_renamed(self) -> dict[str, str]:
        """Return for old names those of now, when all places have theirs.

        Raises:
            SagaTypeError: a name of now is no step's, or an old one is.
        """
        for old, new in self._renamed.items():
            if new not in self._given:
                raise SagaTypeError(
                    f"{self._saga_name}.renamed_steps: {old!r} is said to be {new!r} now, and there is no such step: "
                    f"its steps are {', '.join(self._given) or 'none'}",
                    self._renamed,
                )
            if old in self._given:
                raise SagaTypeError(
                    f"{self._saga_name}.renamed_steps: {old!r} was renamed to {new!r}, and is the name of "
                    f"{type_name(self._given[old])} too: give that another step_name",
                    self._given[old],
                )
        return self._renamed
