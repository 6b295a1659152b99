# ruff: noqa: F401, F821
import punq

import cqrs_sync as cqrs
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.message_brokers import kafka
from cqrs_sync.requests import bootstrap

kafka_broker = kafka.KafkaMessageBroker(
    producer=KafkaProducerAdapter(bootstrap_servers=["localhost:9092"]),
)

mediator = bootstrap.bootstrap(
    di_container=punq.Container(),
    commands_mapper=commands_mapper,
    domain_events_mapper=events_mapper,
    message_broker=kafka_broker,  # publish path for events produced by handlers
)
