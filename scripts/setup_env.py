"""Bring .venv up to date: setup_env.py EXTRA...

The Makefile runs this before every target, so doing nothing must be quick, and each way to fail is one line.
It starts under whatever Python there is, to be able to say that a newer one is needed: no syntax beyond 2.7.
"""

from __future__ import print_function

import fcntl
import hashlib
import io
import json
import os
import re
import subprocess
import sys

NEEDED = (3, 11)
CANDIDATES = ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python")
PROBE = """
import sys
print("%d.%d.%d" % sys.version_info[:3])
print(sys.executable)
import ensurepip, venv
print("fit")
"""
REMEDY = "name another one: make PYTHON=/path/to/python3.12"

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOG = os.path.join(VENV, "setup.log")
STAMP = os.path.join(VENV, "setup.json")

INSTALL_FAILURES = (
    (r"No space left on device", "the disk is full", "make room and run it again"),
    (
        r"NewConnectionError|NameResolutionError|(Connect|Read)Timeout|Max retries|ProxyError|SSLError|HTTP error [45]",
        "the package index cannot be reached",
        "check the network, the proxy and pip's index settings",
    ),
    (r"ResolutionImpossible", "the requirements contradict each other", "see the log"),
    (r"No matching distribution found for ([^\n]+)", "the package index has no {0}", "check pip's index settings"),
    (r"ERROR: ([^\n]+)", "pip says: {0}", "see the log"),
)


def main(extras):
    asked = os.environ.get("PYTHON")
    stamp = read_stamp()
    if asked and stamp and find([asked])["version"] != stamp["python"]:
        stamp = {}
    wanted = sorted(set(extras).union(stamp.get("extras", ())))
    if stamp and stamp["config"] == config() and stamp["extras"] == wanted:
        return
    if not stamp:
        python = find([asked] if asked else CANDIDATES)
        say("creating .venv with Python {version} ({path})".format(**python))
        create(python["path"])
        stamp = {"venv": VENV, "python": python["version"]}
    say("installing {0}; this can take a minute, log: {1}".format(", ".join(wanted), os.path.relpath(LOG, ROOT)))
    install(wanted, stamp)


def read_stamp():
    """What the last complete set-up wrote; nothing when there was none, or when .venv came from elsewhere."""
    try:
        with io.open(STAMP, encoding="utf-8") as file:
            stamp = json.load(file)
    except (IOError, ValueError):
        return {}
    return stamp if stamp["venv"] == VENV and os.path.exists(PYTHON) else {}


def config():
    digest = hashlib.sha256()
    for name in ("setup.cfg", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def find(names):
    """The first of these interpreters that can build the environment."""
    seen = [found for found in map(probe, names) if found]
    new_enough = [found for found in seen if found["number"] >= NEEDED]
    for found in new_enough:
        if found["fit"]:
            return found
    if new_enough:
        lacking = "Python {version} ({path}) lacks venv and ensurepip".format(**new_enough[0])
        package = "python{0}.{1}-venv".format(*new_enough[0]["number"])
        raise failure("{0}: install them (Debian, Ubuntu: apt install {1}), or {2}".format(lacking, package, REMEDY))
    if seen:
        versions = ", ".join("{version} ({path})".format(**found) for found in seen)
        raise failure(
            "cqrs_sync needs Python 3.11 or newer and found {0}: install one, or {1}".format(versions, REMEDY)
        )
    raise failure("{0} does not run: install Python 3.11 or newer, or {1}".format(", ".join(names), REMEDY))


def probe(name):
    """What this interpreter is; None for one that does not run, as a version manager's shim without a version."""
    try:
        process = subprocess.Popen([name, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        lines = process.communicate()[0].decode("utf-8", "replace").split("\n")
        number = tuple(map(int, lines[0].split(".")))
    except (OSError, ValueError):
        return None
    return {"version": lines[0], "path": lines[1], "number": number, "fit": lines[2] == "fit"}


def create(python):
    command = [python, "-m", "venv", "--clear", VENV]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.communicate()[0].decode("utf-8", "replace").strip()
    if process.returncode:
        cause = output.split("\n")[-1] or "no reason given"
        raise failure("{0} -m venv failed: {1}; install Python's venv module, or {2}".format(python, cause, REMEDY))


def install(extras, stamp):
    """Install, and write the stamp last: an environment whose set-up was cut short is built anew."""
    before = take_stamp()
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--editable", "{0}[{1}]".format(ROOT, ",".join(extras))]
    # Through the environment it also reaches the pip that fetches the build system.
    environment = dict(os.environ, PIP_RETRIES=os.environ.get("PIP_RETRIES", "2"))
    with open(LOG, "wb") as log:
        code = subprocess.call(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if code:
        # pip downloads everything before it changes anything, so what was complete still is.
        if before:
            write_stamp(before)
        raise failure("{0} (log: {1})".format(install_failure(), os.path.relpath(LOG, ROOT)))
    write_stamp(dict(stamp, config=config(), extras=extras))


def install_failure():
    with io.open(LOG, encoding="utf-8", errors="replace") as file:
        log = file.read()
    for pattern, cause, remedy in INSTALL_FAILURES:
        match = re.search(pattern, log)
        if match:
            return "cannot install: {0}; {1}".format(cause.format(*match.groups()), remedy)
    return "cannot install: pip failed without a word it is known by"


def take_stamp():
    stamp = read_stamp()
    if stamp:
        os.remove(STAMP)
    return stamp


def write_stamp(stamp):
    with open(STAMP, "w") as file:
        json.dump(stamp, file)


def say(text):
    print("setup: " + text)
    sys.stdout.flush()


def failure(text):
    return SystemExit("setup: " + text)


if __name__ == "__main__":
    try:
        # Two makes at once would install into each other's environment.
        with open(__file__) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("setup: interrupted")
