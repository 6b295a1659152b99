"""The contracts of the ports, run over every implementation of this release."""

from __future__ import annotations

import uuid
from typing import Any

import dishka
import punq
import pytest
import sqlalchemy as sa
from dependency_injector import containers, providers
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from cqrs_sync.container.dependency_injector import DependencyInjectorCQRSContainer
from cqrs_sync.container.dishka import DishkaCQRSContainer
from cqrs_sync.container.protocol import Container
from cqrs_sync.container.punq import PunqContainer
from cqrs_sync.errors import BrokerUnavailable, MessageRejected
from cqrs_sync.message_brokers.devnull import DevnullMessageBroker
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.testing.container import Consumer, ContainerContract, Service
from cqrs_sync.testing.message_broker import MessageBrokerContract
from cqrs_sync.testing.unit_of_work import UnitOfWorkContract
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyTransaction, SqlAlchemyUnitOfWork


class TestInMemoryMessageBroker(MessageBrokerContract):
    def make(self) -> MessageBroker:
        return InMemoryMessageBroker()


class TestDevnullMessageBroker(MessageBrokerContract):
    def make(self) -> MessageBroker:
        return DevnullMessageBroker()


class TestMemoryUnitOfWork(UnitOfWorkContract):
    def make(self) -> UnitOfWork:
        self.unit_of_work = MemoryUnitOfWork()
        return self.unit_of_work

    def write(self, transaction: Transaction, name: str) -> None:
        assert isinstance(transaction, MemoryTransaction)
        transaction[name] = True

    def committed(self) -> set[str]:
        return set(self.unit_of_work.store)


class SqlAlchemyContract(UnitOfWorkContract):
    """One table in whatever database the engine is of."""

    def engine(self) -> sa.Engine:
        raise NotImplementedError

    def make(self) -> UnitOfWork:
        self._engine = self.engine()
        self._table = sa.Table(f"names_{uuid.uuid4().hex}", sa.MetaData(), sa.Column("name", sa.String(20)))
        self._table.create(self._engine)
        return SqlAlchemyUnitOfWork(sessionmaker(self._engine))

    def write(self, transaction: Transaction, name: str) -> None:
        assert isinstance(transaction, SqlAlchemyTransaction)
        transaction.session.execute(self._table.insert().values(name=name))

    def committed(self) -> set[str]:
        with Session(self._engine) as session:
            return set(session.scalars(sa.select(self._table.c.name)))

    def teardown_method(self) -> None:
        self._engine.dispose()


class TestSqlAlchemyUnitOfWorkOnSqliteInMemory(SqlAlchemyContract):
    def engine(self) -> sa.Engine:
        return sa.create_engine("sqlite://", poolclass=StaticPool)


class TestSqlAlchemyUnitOfWorkOnSqliteFile(SqlAlchemyContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Any) -> None:
        self.path = tmp_path / "db"

    def engine(self) -> sa.Engine:
        return sa.create_engine(f"sqlite:///{self.path}")


class TestSqlAlchemyUnitOfWorkOnPostgreSQL(SqlAlchemyContract):
    @pytest.fixture(autouse=True)
    def _server(self, postgres_url: str) -> None:
        self.url = postgres_url

    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url)


class TestPunqContainer(ContainerContract):
    def make(self) -> Container:
        container = punq.Container()
        container.register(Service)
        return PunqContainer(container)


class TestDependencyInjector(ContainerContract):
    def make(self) -> Container:
        class Declared(containers.DeclarativeContainer):
            service = providers.Factory(Service)

        return DependencyInjectorCQRSContainer(Declared())


class TestDishka(ContainerContract):
    def make(self) -> Container:
        provider = dishka.Provider(scope=dishka.Scope.APP)
        provider.provide(Service, cache=False)
        return DishkaCQRSContainer(dishka.make_container(provider))


class TestOpaqueContainer(ContainerContract):
    def make(self) -> Container:
        class Opaque:
            def resolve(self, type_: Any) -> Any:
                return Consumer(Service()) if type_ is Consumer else type_()

        return Opaque()


class Flaky(MessageBroker):
    """Rejects odd numbers, and is gone from number 4 on."""

    def __init__(self) -> None:
        self.tried: list[int] = []

    def send_message(self, message: Message) -> None:
        number = message.payload["number"]
        self.tried.append(number)
        if number == 9:
            raise OSError("a driver's own")
        if number >= 4:
            raise BrokerUnavailable("gone", message)
        if number % 2:
            raise MessageRejected("odd", message)


def test_send_messages_goes_on_after_a_rejection_and_stops_at_an_outage() -> None:
    """The rest is reported as unavailable without being tried."""
    broker = Flaky()
    messages = [Message("n", "t", {"number": number}) for number in range(7)]
    results = broker.send_messages(messages)
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["NoneType", "MessageRejected", "NoneType", "MessageRejected", *["BrokerUnavailable"] * 3]
    assert broker.tried == [0, 1, 2, 3, 4]
    assert isinstance(results[1], MessageRejected)
    assert results[1].message is messages[1]


def test_send_messages_holds_back_what_follows_a_rejection_in_its_key() -> None:
    """Other keys, and messages without one, go on."""
    broker = Flaky()
    sent = [(1, "a"), (0, "a"), (0, "b"), (3, None), (2, None)]
    results = broker.send_messages([Message("n", "t", {"number": number}, key=key) for number, key in sent])
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["MessageRejected", "MessageHeldBack", "NoneType", "MessageRejected", "NoneType"]
    assert broker.tried == [1, 0, 3, 2]


def test_send_messages_reports_an_error_of_the_brokers_own_for_its_message() -> None:
    """And tries no further one."""
    broker = Flaky()
    results = broker.send_messages([Message("n", "t", {"number": number}) for number in (0, 9, 2)])
    assert [type(result) for result in results] == [type(None), OSError, BrokerUnavailable]
    assert broker.tried == [0, 9]


def test_a_message_as_a_dictionary_leaves_out_what_is_absent() -> None:
    """Bytes travel as base64."""
    plain = Message("n", "t", {"a": 1})
    assert plain.to_dict() == {
        "messageName": "n",
        "messageId": str(plain.message_id),
        "topic": "t",
        "payload": {"a": 1},
    }
    full = Message("n", "t", {}, payload_bytes=b"{}", content_type="application/json", headers={"h": "1"}, key="k")
    assert full.to_dict().items() >= {
        ("payloadBytes", "e30="),
        ("contentType", "application/json"),
        ("key", "k"),
    }
    assert full.to_dict()["headers"] == {"h": "1"}
