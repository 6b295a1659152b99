"""Orchestrated sagas: steps over several services that are all done, or undone again."""

from typing import TYPE_CHECKING

from cqrs_sync.lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from cqrs_sync.saga.administration import SagaAdministration as SagaAdministration
    from cqrs_sync.saga.administration import UnfinishableSaga as UnfinishableSaga
    from cqrs_sync.saga.administration import unfinishable_sagas as unfinishable_sagas
    from cqrs_sync.saga.fallback import Fallback as Fallback
    from cqrs_sync.saga.map import SagaMap as SagaMap
    from cqrs_sync.saga.mediator import SagaMediator as SagaMediator
    from cqrs_sync.saga.mermaid import SagaMermaid as SagaMermaid
    from cqrs_sync.saga.models import ContextT as ContextT
    from cqrs_sync.saga.models import SagaContext as SagaContext
    from cqrs_sync.saga.models import SagaOutcome as SagaOutcome
    from cqrs_sync.saga.parallel import Parallel as Parallel
    from cqrs_sync.saga.recovery import recover_saga as recover_saga
    from cqrs_sync.saga.recovery_worker import RecoveryHealth as RecoveryHealth
    from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker as SagaRecoveryWorker
    from cqrs_sync.saga.retry import Retry as Retry
    from cqrs_sync.saga.saga import Saga as Saga
    from cqrs_sync.saga.saga import SagaTransaction as SagaTransaction
    from cqrs_sync.saga.step import Resp as Resp
    from cqrs_sync.saga.step import SagaStepHandler as SagaStepHandler
    from cqrs_sync.saga.step import SagaStepResult as SagaStepResult
    from cqrs_sync.saga.step import StepExecution as StepExecution
    from cqrs_sync.saga.step import TransactionalSagaStep as TransactionalSagaStep
else:  # a context makes pydantic load most of itself
    __getattr__, __dir__ = _lazy_names(
        __name__,
        {
            **dict.fromkeys(
                ("SagaAdministration", "UnfinishableSaga", "unfinishable_sagas"), "cqrs_sync.saga.administration"
            ),
            "Fallback": "cqrs_sync.saga.fallback",
            "SagaMap": "cqrs_sync.saga.map",
            "SagaMediator": "cqrs_sync.saga.mediator",
            "SagaMermaid": "cqrs_sync.saga.mermaid",
            **dict.fromkeys(("ContextT", "SagaContext", "SagaOutcome"), "cqrs_sync.saga.models"),
            "Parallel": "cqrs_sync.saga.parallel",
            "recover_saga": "cqrs_sync.saga.recovery",
            **dict.fromkeys(("RecoveryHealth", "SagaRecoveryWorker"), "cqrs_sync.saga.recovery_worker"),
            "Retry": "cqrs_sync.saga.retry",
            **dict.fromkeys(("Saga", "SagaTransaction"), "cqrs_sync.saga.saga"),
            **dict.fromkeys(
                ("Resp", "SagaStepHandler", "SagaStepResult", "StepExecution", "TransactionalSagaStep"),
                "cqrs_sync.saga.step",
            ),
        },
    )

__all__ = (
    # what users subclass and declare
    "ContextT",
    "Fallback",
    "Parallel",
    "Resp",
    "Retry",
    "Saga",
    "SagaContext",
    "SagaStepHandler",
    "SagaStepResult",
    "StepExecution",
    "TransactionalSagaStep",
    # running sagas
    "SagaMap",
    "SagaMediator",
    "SagaOutcome",
    "SagaTransaction",
    "recover_saga",
    # sagas that were left unfinished
    "RecoveryHealth",
    "SagaAdministration",
    "SagaRecoveryWorker",
    "UnfinishableSaga",
    "unfinishable_sagas",
    # diagrams
    "SagaMermaid",
)
