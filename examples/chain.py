"""A chain of responsibility: each handler answers the request or passes it on."""

import punq

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap


class ApproveExpense(cqrs.Request[str]):
    euros: int


class TeamLead(cqrs.CORRequestHandler[ApproveExpense]):
    def handle(self, request: ApproveExpense) -> str | None:
        if request.euros > 100:
            return self.next(request)
        return "approved by the team lead"


class Manager(cqrs.CORRequestHandler[ApproveExpense]):
    def handle(self, request: ApproveExpense) -> str | None:
        if request.euros > 5_000:
            return self.next(request)
        return "approved by the manager"


class Refuse(cqrs.CORRequestHandler[ApproveExpense]):
    def handle(self, request: ApproveExpense) -> str | None:
        return f"{request.euros} € is refused"


CHAIN = [TeamLead, Manager, Refuse]


if __name__ == "__main__":
    with bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda commands: commands.bind(ApproveExpense, CHAIN),
    ) as mediator:
        for euros in (20, 900, 80_000):
            print(mediator.send(ApproveExpense(euros=euros)))
    print(cqrs.CoRMermaid(CHAIN).sequence())
