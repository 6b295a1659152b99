"""How steps are called: in which scopes, and what comes first where a scope is what commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import cqrs_sync as cqrs
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from tests.unit.sagas import Order, Storage, log_of, mediator_of, saga, step


class Happened(cqrs.DomainEvent):
    """A domain event."""


def happens(self: Any, context: Any) -> None:
    """Be a step after which something has happened."""
    self.events = [Happened()]


class Scoped:
    """A container whose scopes commit when they are closed, what was put into ``rows`` meanwhile.

    Attributes:
        opened: how many scopes there were.
        fails_at: which of them cannot be closed.
        notes: where commits are noted.
    """

    def __init__(self, notes: list[str], fails_at: int = 0) -> None:
        self.opened = 0
        self.fails_at = fails_at
        self.notes = notes

    def resolve(self, type_: Any) -> Any:
        return type_()

    @contextmanager
    def open_scope(self, *, context: Any = None) -> Iterator[Any]:
        self.opened += 1
        number = self.opened
        yield self
        if number == self.fails_at:
            raise LookupError("cannot close")
        self.notes.append("committed")


@pytest.mark.parametrize("strategy", [ScopeStrategy.HANDLER, ScopeStrategy.SEND])
def test_a_step_is_recorded_when_its_scope_is_closed(
    effects: list[str], storage: Storage, strategy: ScopeStrategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scope may be what commits: a process that dies in between finds the effect, and never the record alone."""
    write = storage.write

    def noted(*args: Any) -> None:
        effects.append("recorded")
        write(*args)

    monkeypatch.setattr(storage, "write", noted)
    container = Scoped(effects)
    happening = step("a", effects, happens)

    class OnHappened(cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            effects.append("handled")

    settings: Any = {"domain_events_mapper": lambda m: m.bind(Happened, OnHappened), "scope_strategy": strategy}
    with mediator_of(saga(happening), storage, di_container=container, **settings) as mediator:
        assert mediator.run(Order()).completed
    if strategy is ScopeStrategy.SEND:
        assert effects == ["a", "handled", "committed", "recorded"]
    else:
        assert effects == ["a", "committed", "recorded", "handled", "committed"]


@pytest.mark.parametrize("strategy", [ScopeStrategy.HANDLER, ScopeStrategy.SEND])
def test_a_scope_that_cannot_be_closed_fails_its_step(
    effects: list[str], storage: Storage, strategy: ScopeStrategy
) -> None:
    """With an outcome that nobody knows; each call of a step has a scope of its own."""
    container = Scoped(effects, fails_at=2)
    order_saga = saga(step("a", effects), step("b", effects), step("c", effects))
    with mediator_of(order_saga, storage, di_container=container, scope_strategy=strategy) as mediator:
        outcome = mediator.run(Order())
    assert isinstance(outcome.error, LookupError)
    assert outcome.status is SagaStatus.FAILED
    assert effects == ["a", "committed", "b", "-b", "committed", "-a", "committed"]
    assert ("b", "act", "unknown") in log_of(storage, outcome.saga_id)


def test_a_unit_of_work_commits_before_its_container_s_scope_is_closed(effects: list[str], storage: Storage) -> None:
    """What cannot be closed then costs nothing: the step is committed and recorded."""
    container = Scoped(effects, fails_at=1)
    settings: Any = {"scope_strategy": ScopeStrategy.HANDLER, "unit_of_work": MemoryUnitOfWork()}
    with mediator_of(saga(step("a", effects)), storage, di_container=container, **settings) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["a"]


def test_an_error_behind_the_record_of_a_step_is_logged(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The step is done, and what it wrote is committed: only the end of its unit of work fails."""

    class FailsAtTheEnd(MemoryTransaction):
        def commit(self) -> None:
            if "committed" in effects:
                raise LookupError("the connection is gone")
            super().commit()
            effects.append("committed")

    class Unit(MemoryUnitOfWork):
        def begin(self) -> MemoryTransaction:
            return FailsAtTheEnd(self)

    unit_of_work = Unit()

    def writes(self: Any, context: Any) -> None:
        unit_of_work.transaction()

    with mediator_of(saga(step("a", effects, writes)), storage, unit_of_work=unit_of_work) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["a", "committed"]
    assert "the scope of a could not be closed; the step is recorded" in caplog.text
