"""Kill a flow at every I/O boundary, let it recover, and check that nothing is lost.

A scenario is a few functions at the top of a module. The kit runs it once undisturbed and counts: each SQL statement
and each COMMIT of any SQLAlchemy engine, each call of any ``MessageBroker``, and each :func:`boundary` of your own.
Then it runs the scenario anew for each of these, twice: in a process that gets SIGKILL right before the effect, and in
one that gets it after the effect, before the answer returns. A restart recovers, and your check is handed the ledger::

    def run(case):  # what is killed
        place_order(session_factory(case), LedgerBroker())

    def recover(case):  # what the restart does
        drain_outbox(session_factory(case), LedgerBroker())

    def check(ledger):  # in the test's process
        assert [message.message_name for message in ledger.messages] == ["OrderPlaced"]

    def test_no_event_is_lost(crash_kit):
        crash_kit.run(Scenario(prepare=create_tables, run=run, recover=recover), check)

The product's code knows nothing of it. ``docs/crash-kit.md`` has a whole example. What callers must know:

* A case has a directory of its own, ``case.directory``, and a name, ``case.name``: put the database file into the one,
  or name a schema after the other. The connections of a killed process are closed by the system; a server takes a
  moment to notice and keeps the locks of its transaction till then, so recovery must wait for locks.
* Processes are forked from one that has imported the scenario's modules: connect, and start threads, in the functions.
  That process keeps the ``sys.path``, environment and working directory of the kit's first run. Import a slow driver
  at the top of the module, and it is imported once.
* What a process prints is in ``ledger.output(start)``. A driver that is used without SQLAlchemy is not seen; put a
  :func:`boundary` around its calls in the scenario.
"""

from cqrs_sync.testing.crash.broker import LedgerBroker
from cqrs_sync.testing.crash.case import Case, KillPoint, ScenarioError
from cqrs_sync.testing.crash.kit import CrashKit
from cqrs_sync.testing.crash.ledger import Boundary, Ledger
from cqrs_sync.testing.crash.recorder import boundary, note
from cqrs_sync.testing.crash.report import Finding, NotSurvived, Report
from cqrs_sync.testing.crash.scenario import Scenario

__all__ = (
    # the kit
    "CrashKit",
    "Scenario",
    "Report",
    # what scenarios use
    "Case",
    "LedgerBroker",
    "boundary",
    "note",
    # what checks read
    "Ledger",
    "Boundary",
    "KillPoint",
    # what can go wrong
    "Finding",
    "NotSurvived",
    "ScenarioError",
)
