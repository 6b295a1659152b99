"""Kafka for tests: a real Apache Kafka from Maven Central, and librdkafka's mock cluster.

``python -m tests.kafka`` runs the real one in the foreground and prints its address.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VERSION = "3.9.1"
CACHE = Path(__file__).resolve().parent.parent / ".kafka"

POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <!-- Kafka's own pom brings no logger, and it does not start without one. -->
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-reload4j</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

LOGGING = """\
log4j.rootLogger=WARN, stderr
log4j.appender.stderr=org.apache.log4j.ConsoleAppender
log4j.appender.stderr.target=System.err
log4j.appender.stderr.layout=org.apache.log4j.PatternLayout
log4j.appender.stderr.layout.ConversionPattern=%d %p %c: %m%n
"""

USER, PASSWORD = "alice", "alice-secret"

JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class Kafka:
    """A Kafka that somebody else runs."""

    def __init__(self, address: str) -> None:
        self.address = address


class LocalKafka(Kafka):
    """A node of our own: it can be killed, started again on its ports with what it had, and frozen.

    ``sasl_address`` asks for SASL PLAIN (:data:`USER`, :data:`PASSWORD`). ``properties`` go into its configuration.
    """

    def __init__(self, libraries: Path, directory: Path, properties: Mapping[str, str]) -> None:
        broker, controller, sasl = free_ports(3)
        super().__init__(f"127.0.0.1:{broker}")
        self.sasl_address = f"127.0.0.1:{sasl}"
        self.log = directory / "log"
        self._classpath = f"{libraries}/*"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.address},SASL://{self.sasl_address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address},SASL://{self.sasl_address}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "log.dirs": str(directory / "data"),
            "auto.create.topics.enable": "true",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A killed node cannot register again before its last session ends, which takes 9 s by default.
            "broker.session.timeout.ms": "1000",
            "broker.heartbeat.interval.ms": "200",
            "num.partitions": "4",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "log.cleaner.enable": "false",
        } | dict(properties)
        self._properties = directory / "server.properties"
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (directory / "log4j.properties").write_text(LOGGING)

    def format(self) -> None:
        """Make its directory a Kafka's, once."""
        tool = [*JAVA, "-cp", self._classpath, "kafka.tools.StorageTool"]
        quiet: dict[str, Any] = {"check": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
        identity = subprocess.run([*tool, "random-uuid"], **quiet).stdout.decode().strip()
        subprocess.run([*tool, "format", "-t", identity, "-c", self._properties, "--ignore-formatted"], **quiet)

    def start(self) -> None:
        """Start it, and return when it takes messages."""
        logging = f"-Dlog4j.configuration=file:{self._directory}/log4j.properties"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*JAVA, "-Xmx512m", logging, "-cp", self._classpath, "kafka.Kafka", self._properties],
                stdout=log,
                stderr=log,
                cwd=self._directory,
            )
        wait_until_it_answers(self.address, self._process)

    def kill(self) -> None:
        """End it without a farewell; harmless where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on; harmless where it is not frozen."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def logs(self, topic: str) -> list[Path]:
        """Return the files it keeps a topic's messages in."""
        return list(self._directory.glob(f"data/{topic}-*/*.log"))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze it for a block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Kill it, and start it again after the block."""
        self.kill()
        try:
            yield
        finally:
            self.start()


@contextlib.contextmanager
def real(properties: Mapping[str, str] | None = None) -> Iterator[Kafka]:
    """A real Kafka: that of ``CQRS_TEST_KAFKA``, else a :class:`LocalKafka` that is removed at the end.

    Raises:
        LookupError: there is none to be had.
    """
    given = os.environ.get("CQRS_TEST_KAFKA")
    if given:
        yield Kafka(given)
        return
    fetched = libraries()
    directory = Path(tempfile.mkdtemp(prefix="cqrs-kafka-"))
    try:
        node = LocalKafka(fetched, directory, properties or {})
        node.format()
        try:
            node.start()
            yield node
        finally:
            node.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def libraries() -> Path:
    """The directory of Kafka's jars, fetched once.

    Raises:
        LookupError: without Java or Maven, or when Maven cannot fetch them.
    """
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    target = CACHE / f"libs-{VERSION}"
    if "java" in missing or (missing and not target.exists()):
        raise LookupError(f"no Kafka: install {' and '.join(missing)} (Java 17), or set CQRS_TEST_KAFKA=host:port")
    if target.exists():
        return target
    CACHE.mkdir(exist_ok=True)
    (CACHE / "pom.xml").write_text(POM)
    with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
        fetch = ["mvn", "-q", "-B", "-f", CACHE / "pom.xml", plugin, "-DincludeScope=runtime"]
        done = subprocess.run([*fetch, f"-DoutputDirectory={unfinished}/libs"], capture_output=True, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise LookupError(f"no Kafka: Maven could not fetch it; set CQRS_TEST_KAFKA=host:port\n{said}")
        with contextlib.suppress(OSError):  # another run was faster
            Path(unfinished, "libs").rename(target)
    return target


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the node describes its cluster.

    Raises:
        LookupError: it ended, or did not answer in a minute.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    host, port = address.rsplit(":", 1)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.05)
            continue
        with contextlib.suppress(KafkaException):
            if AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=5).brokers:
                return
    raise LookupError(f"Kafka did not start at {address} (exit code {process.poll()})")


def forbid(kafka: Kafka, topic: str) -> None:
    """Create a topic that clients without authentication must not write."""
    from confluent_kafka import admin

    create(kafka, topic)
    client = admin.AdminClient({"bootstrap.servers": kafka.address})
    denied = admin.AclBinding(
        admin.ResourceType.TOPIC,
        topic,
        admin.ResourcePatternType.LITERAL,
        "User:ANONYMOUS",
        "*",
        admin.AclOperation.WRITE,
        admin.AclPermissionType.DENY,
    )
    for written in client.create_acls([denied]).values():
        written.result(30)


def create(kafka: Kafka, topic: str, partitions: int = 1, **config: str) -> None:
    """Create a topic; ``_`` in a setting's name stands for ``.``."""
    from confluent_kafka import admin

    settings = {name.replace("_", "."): value for name, value in config.items()}
    client = admin.AdminClient({"bootstrap.servers": kafka.address})
    client.create_topics([admin.NewTopic(topic, partitions, 1, config=settings)])[topic].result(30)


def read(address: str, topic: str) -> list[Any]:
    """Return what is in a topic now, in order of partition and offset, as confluent-kafka's messages."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    reader = Consumer({"bootstrap.servers": address, "group.id": "reader", "enable.auto.commit": False, "log_level": 0})
    try:
        known = reader.list_topics(topic, 30).topics[topic].partitions
        partitions = [TopicPartition(topic, number, 0) for number in known]
        wanted = sum(_end(reader, each) for each in partitions)
        reader.assign(partitions)
        found: list[Any] = []
        while len(found) < wanted:
            batch = reader.consume(wanted - len(found), 30)
            if not batch:
                raise LookupError(f"{topic}: {len(found)} of {wanted} messages")
            for message in batch:
                if message.error():
                    raise KafkaException(message.error())
                found.append(message)
        return sorted(found, key=lambda message: (message.partition(), message.offset()))
    finally:
        reader.close()


def _end(reader: Any, partition: Any) -> int:
    """The offset behind a partition's last message; one that was frozen looks for its leader first."""
    from confluent_kafka import KafkaException

    until = time.monotonic() + 30
    while True:
        try:
            end: int = reader.get_watermark_offsets(partition, 30)[1]
            return end
        except KafkaException as error:
            if not error.args[0].retriable() and error.args[0].name() != "NOT_LEADER_FOR_PARTITION":
                raise
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


class MockKafka:
    """librdkafka's mock cluster of one broker: real TCP on the loopback, for any client and any process.

    It lives in this process, in threads of the C library. It creates topics on demand with 4 partitions.
    """

    def __init__(self) -> None:
        self._library = library = librdkafka()
        error = ctypes.create_string_buffer(512)
        conf = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(conf, b"log_level", b"0", error, ctypes.c_size_t(512))
        self._owner = ctypes.c_void_p(library.rd_kafka_new(0, conf, error, ctypes.c_size_t(512)))
        if not self._owner:
            raise LookupError(f"librdkafka: {error.value.decode()}")
        self._cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(self._owner, 1))
        self.address: str = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def down(self) -> None:
        """Refuse connections and drop those that are open."""
        self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def up(self) -> None:
        """Take connections again."""
        self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def round_trip(self, milliseconds: int) -> None:
        """Answer that late."""
        self._library.rd_kafka_mock_broker_set_rtt(self._cluster, 1, milliseconds)

    def fail(self, api_key: int, *codes: int) -> None:
        """Answer the next requests of a kind (0 is Produce, 3 Metadata) with these error codes, one each."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(api_key), ctypes.c_size_t(len(codes)), array
        )

    def close(self) -> None:
        """End it."""
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._owner)


@contextlib.contextmanager
def mock() -> Iterator[MockKafka]:
    """A :class:`MockKafka`.

    Raises:
        LookupError: confluent-kafka is not installed, or built without the mock.
    """
    cluster = MockKafka()
    try:
        yield cluster
    finally:
        cluster.close()


def librdkafka() -> Any:
    """The C library inside confluent-kafka's wheel."""
    spec = importlib.util.find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise LookupError("no mock Kafka: pip install confluent-kafka")
    package = Path(spec.origin).parent
    beside = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")]
    if not beside:
        raise LookupError(f"no mock Kafka: {package} brings no librdkafka of its own")
    library = ctypes.CDLL(str(beside[0]))
    for name in ("conf_new", "new", "mock_cluster_new"):
        getattr(library, f"rd_kafka_{name}").restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


def main() -> None:
    """Run a real Kafka until interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with real() as kafka:
        sys.stdout.write(f"{kafka.address}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_IGN)


if __name__ == "__main__":
    main()
