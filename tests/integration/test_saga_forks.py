"""Sagas that run while their process forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

FORK = """
import os, threading, uuid, warnings
from cqrs_sync.errors import SagaConcurrencyError
from cqrs_sync.saga.leases import Lease, clock, new_owner
from cqrs_sync.saga.storage.memory import MemorySagaStorage

warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the point of this

class Storage(MemorySagaStorage):
    renewals = threading.Semaphore(0)

    def renew(self, leases):
        self.renewals.release()
        return set(leases)

def heartbeats():
    return sum(thread.name == "cqrs-saga-heartbeat" for thread in threading.enumerate())

def refuses(lease):
    try:
        with lease.kept():
            return False
    except SagaConcurrencyError as error:
        return "forked from" in str(error)

storage = Storage(0.3)
lease = Lease(storage, uuid.uuid4(), new_owner(), clock())
with lease.kept():
    child = os.fork()
    if not child:
        assert heartbeats() == 0
        assert lease.is_foreign
        assert refuses(lease)
        own = Lease(storage, uuid.uuid4(), new_owner(), clock())
        assert own.owner.rpartition("/")[0] != lease.owner.rpartition("/")[0]
        with own.kept():
            assert heartbeats() == 1
            assert storage.renewals.acquire(timeout=10)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert heartbeats() == 1
    while storage.renewals.acquire(blocking=False):
        pass
    assert storage.renewals.acquire(timeout=10)
    assert not lease.is_foreign
print("ok")
"""


def test_a_forked_child_keeps_its_own_leases_and_leaves_those_of_its_parent_alone() -> None:
    """Each has a heartbeat; the parent's goes on."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
