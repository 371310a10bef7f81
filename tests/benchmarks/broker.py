"""What the broker is measured by. The counts give each server at least a second of work a run."""

from tests.benchmarks.measure import Scenario

SCENARIOS = [
    Scenario(name="core publish, pipelined, 16 B", load="core", messages=6_000_000),
    Scenario(
        name="core 1 to 1, pipelined, 16 B",
        load="core",
        messages=2_000_000,
        arguments={"subscribers": 1},
    ),
    Scenario(
        name="core 1 to 1, 1000 subjects, 16 B",
        load="core",
        messages=2_000_000,
        arguments={"subscribers": 1, "subjects": 1000},
    ),
    Scenario(
        name="core, 100 connections, one message a write",
        load="core",
        messages=500_000,
        arguments={"subscribers": 1, "publishers": 100},
    ),
    Scenario(
        name="request/reply, 1 pair", load="request_reply", messages=40_000, arguments={"pairs": 1}
    ),
    Scenario(
        name="request/reply, 50 pairs",
        load="request_reply",
        messages=50_000,
        arguments={"pairs": 50},
    ),
    *(
        Scenario(
            name=f"JetStream publish, {storage}, 128 B",
            load="js_publish",
            messages=400_000,
            arguments={"storage": storage, "size": 128},
        )
        for storage in ("file", "memory")
    ),
    *(
        Scenario(
            name=f"JetStream consume, ack {ack}, 128 B",
            load="js_consume",
            messages=600_000,
            arguments={"storage": "file", "size": 128, "ack": ack},
        )
        for ack in ("none", "explicit")
    ),
]
