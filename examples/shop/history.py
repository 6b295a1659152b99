"""Shows what each saga has done, from its log."""

import datetime
import os
from collections.abc import Iterator

from rich.console import Console

from cqrs_sync.saga.storage import SagaLogEntry, SagaState
from examples.shop.dispatch import Dispatch, process_of
from examples.shop.ledger import UNDOING
from examples.shop.report import make_table

ENDS = {"completed": ("shipped", "green"), "failed": ("failed, and undone", "yellow")}


def show_sagas(console: Console, dispatch: Dispatch) -> None:
    """Show the history of each saga, and what its partners were asked for."""
    if not dispatch.sagas:
        console.print("no order waits to be shipped")
        return
    names = {dispatch.dispatcher: "dispatcher", str(os.getpid()): "shop"}
    histories = make_table("What the sagas have done", "order", "step", "result", "#after", "#took", "by")
    for order_id, saga in dispatch.sagas.items():
        for row in _rows(saga, names):
            histories.add_row(order_id, *row)
            order_id = ""
        result, style = ENDS.get(saga.status, (saga.status, "red"))
        histories.add_row(order_id, "", result, style=style, end_section=True)
    console.print(histories)

    partners = make_table("At the partners", "", "#orders", "#asked")
    for action in (one for pair in UNDOING.items() for one in pair):
        effects = [effect for effect in dispatch.effects if effect.action == action]
        if effects:
            partners.add_row(action, str(len(effects)), str(sum(effect.asked for effect in effects)))
    console.print(partners)


def _rows(saga: SagaState, names: dict[str | None, str]) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each call of a step, and for each change of the process."""
    before = process_of(saga.history[0].actor) if saga.history else ""
    for entry in saga.history:
        process = process_of(entry.actor)
        by = names.get(process, process)
        if process != before:
            yield "", "taken on", _since(saga, _begin(entry)), "", by
        before = process
        undoing = "undo " if entry.action == "compensate" else ""
        result = "done" if entry.status == "completed" else f"{entry.status}: {entry.details}"
        took = "" if entry.duration is None else _span(entry.duration)
        yield f"{undoing}{entry.step_name}", result, _since(saga, entry.created_at), took, by


def _begin(entry: SagaLogEntry) -> datetime.datetime | None:
    if entry.created_at is None:
        return None
    return entry.created_at - datetime.timedelta(seconds=entry.duration or 0.0)


def _since(saga: SagaState, time: datetime.datetime | None) -> str:
    return "" if time is None else _span((time - saga.created_at).total_seconds())


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{max(0.0, seconds) * 1000:.0f} ms"
