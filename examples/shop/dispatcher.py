"""Ships the oldest orders, a process of its own: ``python -m examples.shop.dispatcher --help``."""

import argparse
import functools
import os
import sys
from collections.abc import Sequence

from examples.shop.application import build
from examples.shop.fulfilment import ship
from examples.shop.ledger import Ledger
from examples.shop.messages import FindOrdersToShip
from examples.shop.partners import Bank
from examples.shop.relay import SIGKILL


def main(arguments: Sequence[str] | None = None) -> int:
    """Ship orders, one after another."""
    options = _options(arguments)
    bank = Bank if options.killed_after is None else functools.partial(KilledAfter, options.killed_after)
    with build(options.database, bank) as shop:
        for order in shop.requests.send(FindOrdersToShip(limit=options.orders)):
            ship(shop.sagas, order)
    return 0


class KilledAfter(Bank):
    """Kills its process, as ``kill -9`` does, when the bank has made so many charges, and the last is not noted yet."""

    def __init__(self, charges: int, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._left = charges

    def charge(self, order_id: str, customer: str, cents: int, key: str) -> None:
        """Debit an account; it may be the last."""
        super().charge(order_id, customer, cents, key)
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), SIGKILL)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.shop.dispatcher", description="Ships the oldest orders.")
    parser.add_argument("--database", required=True, help="SQLite file or URL of the shop")
    parser.add_argument("--orders", type=int, metavar="N", help="ship N orders (default: all)")
    parser.add_argument("--killed-after", type=int, metavar="N", help="be killed when the bank has made N charges")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
