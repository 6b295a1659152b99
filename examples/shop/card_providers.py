"""Two card companies, as far as the shop sees them. Nothing is random, so each run of the demo ends the same."""

import datetime

from examples.shop.errors import CardDeclined
from examples.shop.messages import ChargeCard

NORDPAY_DOWN_FROM = datetime.datetime.fromisoformat("2025-03-11T11:00+01:00")
NORDPAY_DOWN_UNTIL = datetime.datetime.fromisoformat("2025-03-11T12:15+01:00")


class ProviderUnavailable(Exception):
    """The provider does not answer; the card was not charged."""


class CardProvider:
    """Stands for a web service that charges cards."""

    name: str

    def charge(self, request: ChargeCard) -> None:
        """Charge a card.

        Raises:
            CardDeclined: the provider answered, and the answer is no.
            ProviderUnavailable: there was no answer.
        """
        if request.token.startswith("tok_declined"):
            raise CardDeclined(self.name, request.token)


class Nordpay(CardProvider):
    """The cheaper one, with an outage in the middle of the day."""

    name = "Nordpay"

    def charge(self, request: ChargeCard) -> None:
        """Charge a card, see :class:`CardProvider`."""
        if NORDPAY_DOWN_FROM <= request.placed_at < NORDPAY_DOWN_UNTIL:
            raise ProviderUnavailable("Nordpay: connection timed out")
        super().charge(request)


class Cardia(CardProvider):
    """The one to fall back on."""

    name = "Cardia"
