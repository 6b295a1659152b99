"""Small scenarios, each for one corner of the kit."""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.testing.crash import Case, Ledger, LedgerBroker, boundary, note

early = sa.create_engine("sqlite://")  # before anything is observed


class Bank:
    """Outside of the process, and idempotent: the ledger is its memory."""

    def charge(self, case: Case, order_id: int) -> None:
        with boundary("charge card"):
            if not Ledger.of(case).notes("charged"):
                note("charged", order_id=order_id, case=case)


def charge(case: Case) -> None:
    Bank().charge(case, 7)


@boundary("decorated")
def decorated(case: Case) -> None:
    note("called")


def clean_up(case: Case) -> None:
    """What an ordinary end does and a killed process does not."""
    try:
        with boundary("inner"):
            sys.stdout.write("in the middle of it\n")
    finally:
        note("finally")


def early_engine(case: Case) -> None:
    with early.begin() as connection:
        connection.execute(sa.text("CREATE TABLE secrets (word TEXT)"))
        connection.execute(sa.text("INSERT INTO secrets VALUES (:word)"), [{"word": "xyzzy"}, {"word": "plugh"}])
        connection.exec_driver_sql("SELECT 'xyzzy' -- plugh's")


def savepoints(case: Case) -> None:
    with Session(early) as session:
        session.execute(sa.text("BEGIN"))
        with session.begin_nested():
            session.execute(sa.text("CREATE TABLE kept (id INTEGER)"))
        nested = session.begin_nested()
        session.execute(sa.text("SELECT id FROM kept"))
        nested.rollback()
        session.commit()


def two_phase(case: Case) -> None:
    """SQLite cannot, so the calls of the driver are left out."""
    engine = sa.create_engine("sqlite://")
    for name in ("do_begin_twophase", "do_prepare_twophase", "do_commit_twophase", "do_rollback_twophase"):
        setattr(engine.dialect, name, lambda *arguments, **options: None)
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        transaction.prepare()
        transaction.commit()
        connection.begin_twophase().rollback()


class Decorator(MessageBroker):
    """Passes everything on."""

    def __init__(self, inner: MessageBroker) -> None:
        self._inner = inner

    def send_message(self, message: Message) -> None:
        self._inner.send_message(message)

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return self._inner.send_messages(messages)


def brokers(case: Case) -> None:
    """A call through two brokers, a batch that is a loop, the same through two, and a class that comes late."""

    class Late(InMemoryMessageBroker):
        def send_message(self, message: Message) -> None:
            super().send_message(message)

    def message(name: str) -> Message:
        return Message(name, "t", {})

    Decorator(Decorator(LedgerBroker())).send_message(message("one"))
    LedgerBroker().send_messages([message("two"), message("three")])
    Decorator(Decorator(LedgerBroker())).send_messages([message("four")])
    Late().send_message(message("five"))


def everything_of_a_message(case: Case) -> None:
    LedgerBroker().send_message(
        Message(
            "named",
            "t",
            {"n": 1},
            message_id=uuid.UUID(int=5),
            payload_bytes=b"\xff",
            content_type="text/x",
            headers={"h": "v"},
            key="k",
        )
    )


def refused(case: Case) -> None:
    """An effect that fails is an answer too."""
    try:
        with boundary("refused"):
            raise LookupError("no")
    except LookupError:
        note("refused")


def threads(case: Case) -> None:
    """Many at once."""

    def work() -> None:
        for _ in range(25):
            with boundary("step"):
                pass

    run_all([work] * 4)


def run_all(jobs: Sequence[Callable[[], None]]) -> None:
    started = [threading.Thread(target=job) for job in jobs]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def steps(case: Case) -> None:
    """As many boundaries as the setting says for this run of the scenario."""
    counter = Path(case.settings["counter"])
    run = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(run + 1))
    plan: list[int] = case.settings["steps"]
    for number in range(plan[min(run, len(plan) - 1)]):
        with boundary(f"step {number + 1}"):
            pass


def fail(case: Case) -> None:
    sys.stdout.write("about to fail\n")
    raise LookupError("the flow itself is wrong")


def fail_after_a_crash(case: Case) -> None:
    if Ledger.of(case).kills:
        fail(case)


def leave(case: Case) -> None:
    os._exit(3)


def hang(case: Case) -> None:
    with boundary("lock"):
        threading.Event().wait()


def hang_after_a_crash(case: Case) -> None:
    if Ledger.of(case).kills:
        threading.Event().wait()


def fork(case: Case) -> None:
    """A child of the scenario's own is not counted, and not killed."""
    child = os.fork()
    if not child:
        with boundary("elsewhere"):
            note("child")
        os._exit(0)
    os.waitpid(child, 0)
    with boundary("here"):
        pass


def nothing(case: Case) -> None:
    """Nothing at all."""


class Holder:
    @staticmethod
    def flow(case: Case) -> None:
        with boundary("static"):
            pass

    def method(self, case: Case) -> None: ...


def inner() -> Any:
    def flow(case: Case) -> None: ...

    return flow
