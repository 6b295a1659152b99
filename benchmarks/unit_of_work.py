# ruff: noqa: ARG002  (a handler that needs nothing of its request)
"""One row inserted in a unit of work, beside the same with a bare session."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import cqrs_sync as cqrs
from benchmarks.messages import Ping, container
from benchmarks.report import Row, Section, compared
from benchmarks.timing import Effort, race, statement
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork

BARE = "bare Session: add, commit, close"
OURS = "send, the handler adds"


class Base(DeclarativeBase):
    """The declarative base."""


class Note(Base):
    """One row."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class AddNoteHandler(cqrs.RequestHandler[Ping]):
    """Adds a row in the session of its unit of work."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: Ping) -> None:
        self._session.add(Note(text="noted"))


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    mediator = bootstrap(
        di_container=container(),
        commands_mapper=lambda m: m.bind(Ping, AddNoteHandler),
        unit_of_work=SqlAlchemyUnitOfWork(sessions),
    )

    def add_note() -> None:
        with sessions() as session:
            session.add(Note(text="noted"))
            session.commit()

    times = race(
        {
            BARE: statement("add_note()", add_note=add_note),
            OURS: statement("mediator.send(request)", mediator=mediator, request=Ping()),
        },
        rounds=effort.rounds,
        slice=effort.slice * 10,
    )
    engine.dispose()
    yield Section(
        "unit of work: one row inserted into SQLite in memory",
        [
            Row(name=BARE, seconds=times.median(BARE)),
            compared(times, OURS, BARE, "x bare"),
        ],
    )
