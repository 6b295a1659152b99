from pydantic import BaseModel

import cqrs_sync as cqrs


class UserJoinedPayload(BaseModel, frozen=True):
    user_id: str
    meeting_id: str


cqrs.OutboxedEventMap.register(
    "user_joined",  # topic / routing key name used when publishing
    cqrs.NotificationEvent[UserJoinedPayload],
)
# In a command handler (same transaction as INSERT): append NotificationEvent to outbox repo.
