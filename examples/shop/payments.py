"""Taking a payment: a chain of responsibility, in which the card has a second provider to fall back on."""

import cqrs_sync as cqrs
from cqrs_sync.adapters.circuit_breaker import PyBreakerAdapter
from examples.shop.card_providers import Cardia, Nordpay, ProviderUnavailable
from examples.shop.errors import (
    CardDeclined,
    CardExpired,
    CreditLimitExceeded,
    UnknownPaymentMethod,
    VoucherTooSmall,
)
from examples.shop.messages import ChargeCard, Receipt, TakePayment

VOUCHER = "voucher"
INVOICE = "invoice"


class PayByVoucher(cqrs.CORRequestHandler[TakePayment]):
    """Takes a voucher that covers the whole amount."""

    def handle(self, request: TakePayment) -> Receipt | None:
        if request.payment.voucher is None or request.voucher_left < request.amount:
            return self.next(request)
        return Receipt(paid_by=VOUCHER)


class PayByCard(cqrs.CORRequestHandler[TakePayment]):
    """Charges the card, if the customer gave one."""

    def __init__(self, mediator: cqrs.RequestMediator) -> None:
        self._mediator = mediator

    def handle(self, request: TakePayment) -> Receipt | None:
        card = request.payment.card
        if card is None:
            return self.next(request)
        if card.expires < f"{request.placed_at:%Y-%m}":
            raise CardExpired(card.expires)
        return self._mediator.send(
            ChargeCard(order_id=request.order_id, placed_at=request.placed_at, amount=request.amount, token=card.token)
        )


class PayByInvoice(cqrs.CORRequestHandler[TakePayment]):
    """Sends an invoice, within the customer's credit."""

    def handle(self, request: TakePayment) -> Receipt | None:
        if request.payment.method != INVOICE:
            return self.next(request)
        if request.credit_left < request.amount:
            raise CreditLimitExceeded(request.amount, request.credit_left)
        return Receipt(paid_by=INVOICE)


class RefusePayment(cqrs.CORRequestHandler[TakePayment]):
    """Ends the chain: nobody could take this payment."""

    def handle(self, request: TakePayment) -> Receipt | None:
        if request.payment.voucher is not None:
            raise VoucherTooSmall(request.amount, request.voucher_left)
        raise UnknownPaymentMethod(request.payment.method)


class ChargeAtNordpay(cqrs.RequestHandler[ChargeCard]):
    def __init__(self, provider: Nordpay) -> None:
        self._provider = provider

    def handle(self, request: ChargeCard) -> Receipt:
        self._provider.charge(request)
        return Receipt(paid_by=f"card, {self._provider.name}")


class ChargeAtCardia(cqrs.RequestHandler[ChargeCard]):
    def __init__(self, provider: Cardia) -> None:
        self._provider = provider

    def handle(self, request: ChargeCard) -> Receipt:
        self._provider.charge(request)
        return Receipt(paid_by=f"card, {self._provider.name}")


def bind_payments(commands: cqrs.RequestMap) -> None:
    """Bind the chain, and the card's provider with its fallback."""
    commands.bind(TakePayment, [PayByVoucher, PayByCard, PayByInvoice, RefusePayment])
    commands.bind(
        ChargeCard,
        cqrs.RequestHandlerFallback(
            primary=ChargeAtNordpay,
            fallback=ChargeAtCardia,
            failure_exceptions=(ProviderUnavailable,),
            # After three failures in a row nobody asks Nordpay for a minute. A declined card is an answer.
            circuit_breaker=PyBreakerAdapter(fail_max=3, timeout_duration=60, exclude=[CardDeclined]),
        ),
    )
