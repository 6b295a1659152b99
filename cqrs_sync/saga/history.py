"""Tells what one saga has done, from its log, in the words of a Mermaid sequence diagram."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from cqrs_sync.mermaid import escaped
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import NOBODY, SagaLogEntry, SagaState

_SHOWN = 120
"""How many characters of an error or a reason fit into a diagram."""

_CLOCKS = 0.005
"""Seconds by which times in a log may be off: SQLite's clock has milliseconds, and writing takes a moment."""

_DONE = SagaStepStatus.COMPLETED


class History:
    """What one saga has done.

    Args:
        state: the saga with its log.
    """

    def __init__(self, state: SagaState) -> None:
        self._state = state
        self._next = _next_steps(state)
        steps = dict.fromkeys([*(entry.step_name for entry in state.history if entry.step_name), *self._next])
        self._ids = {name: f"S{number}" for number, name in enumerate(steps, start=1)}

    def lines(self) -> Iterator[str]:
        """Yield the lines of the diagram, in the order of the log."""
        yield from participants(self._state.name, self._ids)
        yield f"Note over S: begun at {_moment(self._state.created_at)}"
        called: set[int] = set()
        runner: str | None = None
        is_going_back = False
        for number, entry in enumerate(self._state.history):
            if not _is_call(entry):
                yield self._note(entry)
                continue
            if runner not in (None, entry.actor):
                yield f"Note over S: taken on by {escaped(entry.actor or 'somebody')}"
            runner = entry.actor
            if entry.action == COMPENSATE and not is_going_back:
                is_going_back = True
                yield "Note over S: back"
            for other in self._begun_by_the_end_of(number):
                if other not in called:
                    called.add(other)
                    begun = self._state.history[other]
                    yield f"S->>{self._ids[begun.step_name]}: {begun.action}"
            yield self._answer(entry)
        yield f"Note over S: {self._end()}"

    def _begun_by_the_end_of(self, number: int) -> Iterator[int]:
        """The entry itself, and later ones whose step had begun when it ended."""
        yield number
        entry = self._state.history[number]
        for other, later in enumerate(self._state.history[number + 1 :], start=number + 1):
            if entry.action == later.action == ACT and entry.actor == later.actor and _is_call(later):
                begun = _began(later)
                if begun and entry.created_at and (entry.created_at - begun).total_seconds() > _CLOCKS:
                    yield other

    def _answer(self, entry: SagaLogEntry) -> str:
        details = [self._since(entry)]
        if entry.duration is not None:
            details.append(f"in {_span(entry.duration)}")
        if entry.attempts > 1:
            details.append(f"{entry.attempts} attempts")
        when = ", ".join(filter(None, details))
        step = self._ids[entry.step_name]
        if entry.status is _DONE:
            done = "done" if entry.action == ACT else "undone"
            return f"{step}-->>S: {done} {when}"
        failed = "failed, perhaps with its effect," if entry.status is SagaStepStatus.UNKNOWN else "failed"
        return f"{step}--xS: {failed} {when}{_because(entry)}"

    def _note(self, entry: SagaLogEntry) -> str:
        """What is no call of a step, such as what somebody has done to the saga from outside."""
        over = f"S,{self._ids[entry.step_name]}" if entry.step_name else "S"
        action = f"{entry.action} {entry.status}" if entry.action in (ACT, COMPENSATE) else entry.action
        if entry.status is SagaStepStatus.STARTED:
            action = "takes over"
        by = f"by {entry.actor}" if entry.actor else ""
        what = " ".join(filter(None, [action, self._since(entry), by]))
        return f"Note over {over}: {escaped(what)}{_because(entry)}"

    def _since(self, entry: SagaLogEntry) -> str:
        if entry.created_at is None:
            return ""
        return f"after {_span((entry.created_at - self._state.created_at).total_seconds())}"

    def _end(self) -> str:
        state = self._state
        ended = state.finished_at or state.updated_at
        span = _span((ended - state.created_at).total_seconds())
        following = escaped(" and ".join(self._next)) or "what is left"
        match state.status:
            case SagaStatus.COMPLETED:
                return f"completed after {span}"
            case SagaStatus.FAILED:
                return f"failed after {span}, and everything is undone"
            case SagaStatus.ABANDONED:
                return f"given up after {span}"
            case SagaStatus.COMPENSATION_FAILED:
                return f"stuck since {_moment(ended)}: {following} could not be undone"
        method = COMPENSATE if state.status is SagaStatus.COMPENSATING else ACT
        if state.locked_by in (None, *NOBODY):
            interrupted = "was interrupted, and " if state.leaves_doubt else ""
            unfit = ", by other code" if state.is_unfit else ""
            return f"{state.status}: {method} of {following} {interrupted}is next{unfit}{self._from()}"
        until = "" if state.available_at is None else f" until {_moment(state.available_at)}"
        return f"{state.status}: {method} of {following} is for {escaped(state.locked_by)} to do{until}"

    def _from(self) -> str:
        return "" if self._state.available_at is None else f" from {_moment(self._state.available_at)}"


def participants(saga_name: str, ids: dict[str, str]) -> list[str]:
    """Return the lines that introduce a saga and its steps, each under its identifier."""
    steps = (f"participant {identifier} as {escaped(name)}" for name, identifier in ids.items())
    return [f"participant S as {escaped(saga_name)}", *steps]


def _next_steps(state: SagaState) -> list[str]:
    """The names of the steps that are next, or at work; of a group without those that are done."""
    if state.status.is_final or state.current_step is None:
        return []
    steps = state.current_step.split(" & ")
    if state.status not in (SagaStatus.PENDING, SagaStatus.RUNNING):
        return steps
    done = {entry.step_name for entry in state.history if (entry.action, entry.status) == (ACT, _DONE)}
    return [step for step in steps if step not in done]


def _is_call(entry: SagaLogEntry) -> bool:
    """Whether the engine has called a step; other entries are an operator's, or say that a fallback takes over."""
    is_told = entry.status not in (SagaStepStatus.SKIPPED, SagaStepStatus.STARTED)
    return bool(entry.step_name) and entry.action in (ACT, COMPENSATE) and is_told


def _began(entry: SagaLogEntry) -> datetime.datetime | None:
    if entry.created_at is None or entry.duration is None:
        return None
    return entry.created_at - datetime.timedelta(seconds=entry.duration)


def _because(entry: SagaLogEntry) -> str:
    if not entry.details:
        return ""
    cut = "…" if len(entry.details) > _SHOWN else ""
    return f": {escaped(entry.details[:_SHOWN] + cut)}"


def _moment(time: datetime.datetime) -> str:
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(datetime.timedelta(seconds=round(seconds)))
