"""One transaction per command: a handler that fails leaves no row."""

import punq
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    name: Mapped[str] = mapped_column(primary_key=True)


class AddUser(cqrs.Request[None]):
    name: str
    fail: bool = False


class AddUserHandler(cqrs.RequestHandler[AddUser]):
    def __init__(self, session: Session) -> None:  # the session of this send; never commit it
        self._session = session

    def handle(self, request: AddUser) -> None:
        self._session.add(User(name=request.name))
        self._session.flush()
        if request.fail:
            raise RuntimeError("the mail server is down")


if __name__ == "__main__":
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda commands: commands.bind(AddUser, AddUserHandler),
        unit_of_work=SqlAlchemyUnitOfWork(sessionmaker(engine)),
    ) as mediator:
        mediator.send(AddUser(name="Ada"))
        try:
            mediator.send(AddUser(name="Brian", fail=True))
        except RuntimeError as error:
            print(f"Brian was not added: {error}")
    with Session(engine) as session:
        print("users:", *session.scalars(select(User.name)))
    engine.dispose()
