"""Moving a consumer group's place from Kafka to NATS and back, exactly, with a written proof.

A Kafka group stands, per partition, at an offset: all below it is handled. A coordinator group
stands at a sequence of the stream. Both sides hold the same records, so there is one right place;
what can make it not exist is order. A message published straight to NATS is in the stream between
two records that Kafka has side by side, and in Kafka, once the way back has written it, somewhere
behind both. So a place on one side is a place on the other only if, there too, nothing handled
comes after something that is not. `places` computes that, without I/O; where there is no such
place the cut-over **refuses** and says which message is in the way. It never chooses the lesser
evil.

`index` reads a stream once and remembers little of it. It is made while the group is still at work,
so that the time in which nobody reads is short: once the group is empty only what came since is
read. `cutover` is the way there, `rollback` the way home; each is a dry run until told otherwise,
and writes down what it saw before, what it did, and what it read back after (`proof`). `takeover`
makes or moves the coordinator group.
"""
