"""Three services that others run, as far as the shop sees them: a warehouse, a bank and a carrier.

What they know is in ``partners.json``, so each run of the demo ends the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.shop.ledger import CHARGED, RESERVED, SHIPPED, Ledger, NotEnough

PARTNERS: Mapping[str, Mapping[str, Any]] = json.loads(Path(__file__).with_name("partners.json").read_text("utf-8"))


class Refused(Exception):
    """The partner says no, and has done nothing."""


class Warehouse:
    """Has the goods; not always as many as the shop believes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def reserve(self, order_id: str, product: str, quantity: int, key: str) -> None:
        """Put goods aside.

        Raises:
            Refused: there are too few.
        """
        try:
            self._ledger.note(key, RESERVED, order_id, product, quantity)
        except NotEnough as error:
            raise Refused(f"{product}: {quantity} wanted, {error.left} left") from None

    def put_back(self, order_id: str, key: str) -> None:
        """Put them back on the shelf."""
        self._ledger.undo(key, RESERVED, order_id)


class Bank:
    """Has the customers' money."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def charge(self, order_id: str, customer: str, cents: int, key: str) -> None:
        """Debit an account.

        Raises:
            Refused: it is not covered.
        """
        try:
            self._ledger.note(key, CHARGED, order_id, customer, cents)
        except NotEnough as error:
            raise Refused(f"{cents / 100:.2f} to pay, {error.left / 100:.2f} left") from None

    def refund(self, order_id: str, key: str) -> None:
        """Give the money back."""
        self._ledger.undo(key, CHARGED, order_id)


class Carrier:
    """Has the vans."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def ship(self, order_id: str, customer: str, key: str) -> None:
        """Take a parcel.

        Raises:
            Refused: nobody can deliver it.
        """
        obstacle = PARTNERS["carrier"].get(customer)
        if obstacle is not None:
            raise Refused(f"{customer}: {obstacle}")
        self._ledger.note(key, SHIPPED, order_id)

    def call_back(self, order_id: str, key: str) -> None:
        """Have a parcel returned."""
        self._ledger.undo(key, SHIPPED, order_id)
