"""One member of a Kafka consumer group: prints ``handle <monotonic clock> <partition>`` per record.

Arguments: bootstrap, topic, group, protocol (classic or consumer), instance id or ``-``. Ends, with
what it has left and leaving nothing (a static member stays in its group), on SIGTERM.
"""

import signal
import sys
import time

from confluent_kafka import Consumer


def main(bootstrap: str, topic: str, group: str, protocol: str, instance: str) -> None:
    settings: dict[str, object] = {
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "group.protocol": protocol,
    }
    if protocol == "classic":
        settings["partition.assignment.strategy"] = "cooperative-sticky"
    if instance != "-":
        settings["group.instance.id"] = instance
    consumer = Consumer(settings)
    is_stopping = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    consumer.subscribe([topic])
    while not is_stopping:
        record = consumer.poll(0.2)
        if record is not None and not record.error():
            print("handle", repr(time.monotonic()), record.partition(), flush=True)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
