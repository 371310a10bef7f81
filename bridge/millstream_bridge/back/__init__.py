"""The way back: a stream's messages into a Kafka topic, once, in order, without going in circles.

Each message of a route's stream is one of two kinds. What came from Kafka says so
(``Millstream-Source``) and is there already. What was published straight to NATS, by producers
that have moved, is what Kafka lacks: it gets the partition and key of its subject, its payload, its
headers, the time the stream stored it, and in front two headers that mark it (`records.origin`), by
which the route's forward bridge leaves it alone. So both directions can run at once, for months.

`runner` moves, one transaction per batch with the position in it (`kafka.sink`); `position` finds
where to begin; `tail` reads the stream; `returning` turns a message into a record. Order: a
partition's messages reach Kafka in the stream's order. Between them and what others still write to
Kafka there is no order, as there is none between two producers.

To **another topic** everything can go, what came from Kafka included, exactly as it was there:
partition, key, value, headers, timestamp. That is a copy of the topic, for a new cluster, or to
look at before one dares.
"""
