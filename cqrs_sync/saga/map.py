"""Which saga runs for which context."""

from __future__ import annotations

from typing import Any

from cqrs_sync.bindings import Bindings, check_message_type
from cqrs_sync.errors import DuplicateHandler, SagaTypeError, type_name
from cqrs_sync.saga.models import ContextT, SagaContext
from cqrs_sync.saga.saga import Saga, definition_of


class SagaMap(Bindings[type[SagaContext], type[Saga[Any]]]):
    """Binds each context class to its one saga. Lookup is by exact class, and by the saga's name for stored ones."""

    def bind(self, context_type: type[ContextT], saga_type: type[Saga[ContextT]]) -> None:
        """Bind a context class.

        Raises:
            DuplicateHandler: the context has a saga already, or another saga has this one's name.
            SagaTypeError: it is no saga with steps, or for another context.
        """
        self[context_type] = saga_type

    def __setitem__(self, context_type: type[SagaContext], saga_type: type[Saga[Any]]) -> None:
        check_message_type(context_type, SagaContext, SagaTypeError)
        definition = definition_of(saga_type)
        if context_type in self:
            raise DuplicateHandler(context_type, saga_type, f"it is bound to {type_name(self[context_type])}")
        if definition.context_type is not None and not issubclass(context_type, definition.context_type):
            raise SagaTypeError(
                f"{type_name(saga_type)} is for {type_name(definition.context_type)} and cannot be bound to "
                f"{type_name(context_type)}",
                saga_type,
            )
        for other in self.values():
            if definition_of(other).saga_name == definition.saga_name:
                raise DuplicateHandler(
                    definition.saga_name, saga_type, f"{type_name(other)} has this name; give one another saga_name"
                )
        super().__setitem__(context_type, saga_type)

    def named(self, saga_name: str) -> tuple[type[SagaContext], type[Saga[Any]]] | None:
        """Return the saga of a name, with the context that it is bound to; None where there is none."""
        for context_type, saga_type in self.items():
            if definition_of(saga_type).saga_name == saga_name:
                return context_type, saga_type
        return None
