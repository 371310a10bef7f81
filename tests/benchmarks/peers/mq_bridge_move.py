"""mq-bridge moving one topic into one stream, run by the interpreter of its own environment.

    .cache/peers/mq-bridge/bin/python mq_bridge_move.py KAFKA TOPIC NATS STREAM

The stream is there before; it runs until it is killed. The record's key, timestamp and headers as
Kafka has them are not part of what it moves.
"""

import sys

from mq_bridge import Route  # type: ignore[import-not-found]


def main() -> None:
    """Start the route and wait."""
    kafka, topic, nats, stream = sys.argv[1:]
    route = Route.from_config(
        {
            "input": {
                "kafka": {
                    "url": kafka,
                    "topic": topic,
                    "group_id": f"mq-{stream}",
                    "consumer_options": [["auto.offset.reset", "earliest"]],
                }
            },
            "output": {"nats": {"url": nats, "stream": stream, "subject": f"{stream}.all"}},
            "batch_size": 1_000,
        }
    )
    route.run()


if __name__ == "__main__":
    main()
