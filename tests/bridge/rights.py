"""What a secured Kafka permits its user `BRIDGE`: given line by line, and taken back."""

from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from tests.helpers.kafka import KafkaNode, await_true

Line = tuple[str, str, str]
"""Resource, name and operation, as `Needs.kafka` has them."""
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}
_ANY_NAME: Any = None
_EVERY = AclBindingFilter(
    ResourceType.ANY,
    _ANY_NAME,
    ResourcePatternType.ANY,
    _ANY_NAME,
    _ANY_NAME,
    AclOperation.ANY,
    AclPermissionType.ANY,
)


def permit(node: KafkaNode, lines: Iterable[Line]) -> None:
    """Give the bridge's user these rights; returns when the broker goes by them."""
    rules = [
        AclBinding(
            _KINDS[kind],
            name,
            ResourcePatternType.LITERAL,
            f"User:{KafkaNode.BRIDGE}",
            "*",
            _OPERATIONS[operation],
            AclPermissionType.ALLOW,
        )
        for kind, name, operation in lines
    ]
    admin = _admin(node)
    for done in admin.create_acls(rules).values():
        done.result(20)
    await_true(lambda: {*rules} <= {*_rules(admin)})


def permit_nothing(node: KafkaNode) -> None:
    """Take all rights back; returns when the broker goes by that."""
    admin = _admin(node)
    for done in admin.delete_acls([_EVERY]).values():
        done.result(20)
    await_true(lambda: not _rules(admin))


def make_topic(node: KafkaNode, topic: str) -> None:
    """A topic of one partition with one record."""
    admin = _admin(node)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(20)
    producer = Producer({"bootstrap.servers": node.bootstrap, **node.options})
    producer.produce(topic, key=b"k", value=b"v")
    assert producer.flush(20) == 0


def _admin(node: KafkaNode) -> AdminClient:
    return AdminClient({"bootstrap.servers": node.bootstrap, **node.options})


def _rules(admin: AdminClient) -> Sequence[AclBinding]:
    found: Sequence[AclBinding] = admin.describe_acls(_EVERY).result(20)
    return found
