"""JetStream: streams, consumers and their API, as one pure object (``engine.JetStream``).

The engine subscribes to subjects on a ``routing.port.Bus``, keeps messages in ``store.port``
storages, and is driven by what arrives and by ``advance(now)``. It does no I/O of its own.

| file | noun |
|---|---|
| engine | the whole: start, next_deadline, advance, stop |
| host | what all parts share: bus, clock reading, timers, rounds of work |
| registry | the streams of the account; create, update, delete, recover |
| api, direct | requests on ``$JS.API.>``; raw reads |
| stream | one stream: limits, retention, readers; ``announce`` makes stored visible |
| publish, staging, batch | from the wire to the ack: checks, storing, atomic batches |
| dedup, expiry, ttl | duplicate window; max_age, Nats-TTL and markers; durations |
| sources | a stream that takes from other streams |
| consumer | which message is next and who gets it |
| start, ack_intake | where a consumer begins; what clients answer |
| acks | deliveries and what is owed: pending, floor, redelivery |
| pull, push | waiting requests and their statuses; flow control and heartbeats |
| consumer_state | a consumer's document and journal |
| model, wire, strictjson, codes | values; JSON; Go's JSON errors; the error table |
| stream_config, consumer_config | defaults and checks of configurations |
| advisory | what happened, for whoever listens |

Not there yet, and refused with an API error: mirrors, sources in other accounts, message
counters, message schedules, fast-ingest batches, priority groups, the flow_control ack policy,
CONSUMER.RESET, snapshots and restores. Accepted without effect: compression, placement, pedantic
requests, persist_mode async (writes still come before acks).
"""
