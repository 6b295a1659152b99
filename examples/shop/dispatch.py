"""Has orders shipped by a process that is killed in the middle, goes on without it, and checks what was done."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

import cqrs_sync as cqrs
from cqrs_sync.saga.storage import SagaState, SagaStatus
from examples.shop.application import Shop
from examples.shop.fulfilment import saga_id_of, ship
from examples.shop.ledger import CHARGED, SHIPPED, UNDOING
from examples.shop.messages import FindOrdersToShip, OrderToShip
from examples.shop.relay import SIGKILL
from examples.shop.tables import PartnerEffect
from examples.shop.topics import Arrival

ROOT = Path(__file__).parents[2]

PARCELS = 8
"""How many orders a run of the demo ships: the oldest ones that wait for it."""

KILLED_AFTER = 4
"""The charge at which the dispatcher is killed: sagas have ended by then, one is in its hands, some are not begun."""


class Dispatch:
    """The sagas of some orders, and what their steps have done; the methods list what is wrong.

    Attributes:
        sagas: with their logs, as they were at the last :meth:`look`.
        effects: what the partners have done for these orders.
        unfinished: sagas that nobody has finished, those of other orders included.
        dispatcher: the number of the process that was killed.
        in_hand: the order that it was in the middle of; None where it was not killed.
    """

    def __init__(self, shop: Shop, orders: Sequence[OrderToShip]) -> None:
        self.sagas: dict[str, SagaState] = {}
        self.effects: list[PartnerEffect] = []
        self.unfinished: list[SagaState] = []
        self.dispatcher: str | None = None
        self.in_hand: str | None = None
        self._shop = shop
        self._orders = orders

    def look(self) -> None:
        """Read what there is by now."""
        waiting = self.waiting()
        begun = [order.order_id for order in self._orders if order not in waiting]
        self.sagas = {order_id: self._shop.administration.show(saga_id_of(order_id)) for order_id in begun}
        self.effects = [effect for effect in self._shop.ledger.effects() if effect.order_id in self.sagas]
        self.unfinished = self._shop.administration.find()

    def waiting(self) -> list[OrderToShip]:
        """Those of the orders that nobody has begun to ship."""
        waiting = self._shop.requests.send(FindOrdersToShip())
        return [order for order in self._orders if order in waiting]

    def count(self, status: SagaStatus) -> int:
        """How many of the sagas are that far."""
        return sum(saga.status is status for saga in self.sagas.values())

    def not_ended(self) -> list[str]:
        """Sagas that nobody has finished."""
        return [f"{saga.saga_id} is {saga.status}" for saga in self.unfinished]

    def in_part(self) -> list[str]:
        """Orders for which some things were done and others were not, or were undone."""
        wrong = []
        for order_id, saga in self.sagas.items():
            done = self._done(order_id)
            standing = [action for action, undoing in UNDOING.items() if done[action] > done[undoing]]
            if standing != (list(UNDOING) if saga.status is SagaStatus.COMPLETED else []):
                wrong.append(f"{order_id} is {saga.status}, and {', '.join(standing) or 'nothing'} stands")
        return wrong

    def refunded_and_shipped(self) -> list[str]:
        """Orders that somebody has for nothing."""
        done = {order_id: self._done(order_id) for order_id in self.sagas}
        return [f"{order_id} was" for order_id in done if done[order_id][UNDOING[CHARGED]] and done[order_id][SHIPPED]]

    def repeated(self) -> list[str]:
        """What was done more than once for an order."""
        return [
            f"{order_id} was {action} {times} times"
            for order_id in self.sagas
            for action, times in self._done(order_id).items()
            if times > 1
        ]

    def not_recovered(self) -> list[str]:
        """The order in the hands of the killed process, unless another one has finished its saga."""
        if self.in_hand is None:
            charged = sum(self._done(order_id)[CHARGED] for order_id in self.sagas)
            return ["nobody was killed"] if charged >= KILLED_AFTER else []
        saga = self.sagas[self.in_hand]
        processes = {process_of(entry.actor) for entry in saga.history}
        if saga.status.is_final and processes > {self.dispatcher}:
            return []
        return [f"{self.in_hand} is {saga.status}, by {' and '.join(sorted(processes)) or 'nobody'}"]

    def wrongly_announced(self, arrivals: Iterable[Arrival]) -> list[str]:
        """Orders that were shipped and nobody was told, or the other way round."""
        told = {arrival.order_id for arrival in arrivals if arrival.event_name == "order_shipped"}
        return [
            f"{order_id} is {saga.status}, and {'was' if order_id in told else 'was not'} announced"
            for order_id, saga in self.sagas.items()
            if (saga.status is SagaStatus.COMPLETED) != (order_id in told)
        ]

    def _done(self, order_id: str) -> Counter[str]:
        """How often each thing was done for an order."""
        return Counter(effect.action for effect in self.effects if effect.order_id == order_id)


def process_of(actor: str | None) -> str:
    """The number of a process in the name of a saga's owner, which begins with the host and that."""
    return (actor or "::").split(":")[1]


def dispatch(shop: Shop, database: Path | str, console: Console, patience: float = 60.0) -> Dispatch:
    """Ship the oldest orders; all sagas have ended then, unless that takes longer than ``patience`` seconds."""
    result = Dispatch(shop, shop.requests.send(FindOrdersToShip(limit=PARCELS)))
    waiting = result.waiting()
    if waiting:
        _have_shipped(result, database, len(waiting))
        console.print(_what_is_left(result), soft_wrap=True)
    since = time.monotonic()
    with cqrs.SagaRecoveryWorker(shop.sagas, max_workers=1, poll_interval=0.1):
        for order in result.waiting():
            ship(shop.sagas, order)
        while shop.administration.find() and time.monotonic() < since + patience:
            time.sleep(0.05)
    result.look()
    if result.in_hand is not None:
        saga = result.sagas[result.in_hand]
        waited = f"{time.monotonic() - since:.1f} seconds later"
        console.print(f"{result.in_hand} taken on by a recovery worker: {saga.status}, {waited}", soft_wrap=True)
    return result


def _have_shipped(result: Dispatch, database: Path | str, orders: int) -> None:
    """Run the dispatcher until it is killed; or to its end, where there is too little to charge."""
    command = [sys.executable, "-m", "examples.shop.dispatcher", "--database", str(database)]
    options = ["--orders", str(orders), "--killed-after", str(KILLED_AFTER)]
    with subprocess.Popen([*command, *options], cwd=ROOT) as process:
        result.dispatcher = str(process.pid)
    if process.returncode and abs(process.returncode) != SIGKILL:
        raise RuntimeError(f"the dispatcher ended by itself, with exit code {process.returncode}")
    result.look()
    if process.returncode:
        in_hand = (order_id for order_id, saga in result.sagas.items() if not saga.status.is_final)
        result.in_hand = next(in_hand, None)


def _what_is_left(result: Dispatch) -> str:
    ended = f"{result.count(SagaStatus.COMPLETED)} orders shipped, {result.count(SagaStatus.FAILED)} failed"
    if result.in_hand is None:
        return f"dispatcher has come to its end: {ended}"
    step = result.sagas[result.in_hand].current_step
    left = f"{result.in_hand} in the middle of {step}, {len(result.waiting())} not begun"
    return f"dispatcher killed: {ended}, {left}"
