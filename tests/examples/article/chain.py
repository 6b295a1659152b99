import cqrs_sync as cqrs
from cqrs_sync.requests.cor_request_handler import CORRequestHandler


class PayCmd(cqrs.Request):
    amount: float
    method: str
    user_id: str


class PayResult(cqrs.Response):
    ok: bool
    msg: str = ""


class CardHandler(CORRequestHandler[PayCmd, PayResult]):
    @property
    def events(self) -> list[cqrs.Event]:
        return []

    def handle(self, request: PayCmd) -> PayResult | None:
        if request.method == "card":
            return PayResult(ok=True, msg="card")
        return self.next(request)  # delegate down the chain


class DefaultPay(CORRequestHandler[PayCmd, PayResult]):
    @property
    def events(self) -> list[cqrs.Event]:
        return []

    def handle(self, request: PayCmd) -> PayResult | None:
        return PayResult(ok=False, msg=f"unsupported: {request.method}")
