"""Why the shop refuses orders."""

from typing import ClassVar


class OrderRejected(Exception):
    """The shop does not take this order, and nothing of it is kept.

    Attributes:
        reason: what all orders refused for the same cause have in common; the text has the details.
    """

    reason: ClassVar[str]


class DuplicateOrder(OrderRejected):
    reason = "order id used before"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"{order_id} is an order already")


class UnknownCustomer(OrderRejected):
    reason = "unknown customer"

    def __init__(self, customer: str) -> None:
        super().__init__(f"{customer} has no account")


class UnknownProduct(OrderRejected):
    reason = "unknown product"

    def __init__(self, product: str) -> None:
        super().__init__(f"{product} is not in the catalogue")


class InsufficientStock(OrderRejected):
    reason = "insufficient stock"

    def __init__(self, product: str, wanted: int, left: int) -> None:
        super().__init__(f"{product}: {wanted} wanted, {left} left")


class CardExpired(OrderRejected):
    reason = "card expired"

    def __init__(self, expires: str) -> None:
        super().__init__(f"the card was valid until {expires}")


class CardDeclined(OrderRejected):
    reason = "card declined"

    def __init__(self, provider: str, token: str) -> None:
        super().__init__(f"{provider} declined {token}")


class CreditLimitExceeded(OrderRejected):
    reason = "credit limit exceeded"

    def __init__(self, amount: int, credit_left: int) -> None:
        super().__init__(f"{amount / 100:.2f} to pay, {credit_left / 100:.2f} of credit left")


class VoucherTooSmall(OrderRejected):
    reason = "voucher too small"

    def __init__(self, amount: int, voucher_left: int) -> None:
        super().__init__(f"{amount / 100:.2f} to pay, {voucher_left / 100:.2f} left on the voucher")


class UnknownPaymentMethod(OrderRejected):
    reason = "unknown payment method"

    def __init__(self, method: str) -> None:
        super().__init__(f"nothing is sold for {method}")
