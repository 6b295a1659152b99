"""What the shop's partners have done and what they have left, as each would keep it in a database of its own.

Asked again under the same key, a partner counts that it was asked, and does nothing.
"""

from sqlalchemy import Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from examples.shop.tables import PartnerEffect, PartnerStock

RESERVED, CHARGED, SHIPPED = "reserved", "charged", "shipped"
UNDOING = {RESERVED: "put back", CHARGED: "refunded", SHIPPED: "called back"}
"""What undoes an effect."""


class NotEnough(Exception):
    """There is less than was asked for, and nothing was done.

    Attributes:
        left: how much there is.
    """

    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"{left} of {item} left")
        self.left = left


class Ledger:
    """Notes effects, each in a transaction of its own: nothing that becomes of the shop's undoes it."""

    def __init__(self, engine: Engine) -> None:
        self._sessions = sessionmaker(engine)

    def effects(self) -> list[PartnerEffect]:
        """Return all of them."""
        with self._sessions() as session:
            return list(session.scalars(select(PartnerEffect)))

    def note(self, key: str, action: str, order_id: str, item: str | None = None, amount: int = 1) -> None:
        """Note an effect that takes an amount of something, unless it is noted under its key.

        Raises:
            NotEnough: less is left.
        """
        with self._sessions.begin() as session:
            if not _is_new(session, key=key, action=action, order_id=order_id, item=item, amount=amount):
                return
            if item is not None:
                _take(session, item, amount)

    def undo(self, key: str, action: str, order_id: str) -> None:
        """Undo an effect, where there is one: after a crash nobody knows."""
        which = (PartnerEffect.order_id == order_id, PartnerEffect.action == action)
        with self._sessions() as session:
            done = session.scalar(select(PartnerEffect).where(*which))
        if done is not None:
            self.note(key, UNDOING[action], order_id, done.item, -done.amount)


def _is_new(session: Session, **effect: str | int | None) -> bool:
    """Note an effect, or that it was asked for once more."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    noted = insert(PartnerEffect).values(**effect, asked=1)
    again = noted.on_conflict_do_update(index_elements=["key"], set_={"asked": PartnerEffect.asked + 1})
    return session.scalar(again.returning(PartnerEffect.asked)) == 1


def _take(session: Session, item: str, amount: int) -> None:
    # One statement checks and takes, as for the shop's own stock; what comes back is a negative amount.
    take = update(PartnerStock).where(PartnerStock.item == item, PartnerStock.left_over >= amount)
    left = session.scalar(take.values(left_over=PartnerStock.left_over - amount).returning(PartnerStock.left_over))
    if left is None:
        raise NotEnough(item, session.scalar(select(PartnerStock.left_over).where(PartnerStock.item == item)) or 0)
