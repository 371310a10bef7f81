"""Which topic it is: Kafka gives each an id when it is made, so one made anew has another.

A topic that was deleted and made again under its name begins at offset 0. A position in the old one
says nothing about it, and going on there would skip records or store them behind others.

Older brokers (before 3.1) and librdkafka's mock cluster give no ids; then there is none.
"""

import logging
from collections.abc import Mapping

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
)

from ..errors import Unreachable
from .clients import MOCK_CLUSTER, SILENT, admin_settings, client_logger
from .worker_thread import WorkerThread

logger = logging.getLogger(__name__)

_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"


class TopicIdentity:
    """Asks for the id of one topic. ``options`` are librdkafka's."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        options: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._timeout_s = timeout_s
        self._thread = WorkerThread("kafka topic")
        self._client: AdminClient | None = None
        self._has_ids = True
        self._config = admin_settings(bootstrap, options)

    async def id(self) -> str | None:
        """The topic's id; None where Kafka has or tells none. Unreachable: it does not answer."""
        return await self._thread.run(self._id) if self._has_ids else None

    def close(self) -> None:
        """End the thread; the client goes with it."""
        self._client = None
        self._thread.stop()

    def _id(self) -> str | None:
        try:
            if self._client is None:
                self._client = AdminClient(self._config, logger=client_logger)
                listed = self._client.list_topics(self._topic, timeout=self._timeout_s)
                # It takes its time to say that it does not know.
                self._has_ids = not str(listed.cluster_id).startswith(MOCK_CLUSTER)
                if not self._has_ids:
                    return None
            answers = self._client.describe_topics(
                TopicCollection([self._topic]), request_timeout=self._timeout_s
            )
            found = str(answers[self._topic].result(self._timeout_s + 1).topic_id)
        except TimeoutError as error:
            raise Unreachable("Kafka", self._bootstrap, "no answer") from error
        except KafkaException as error:
            if error.args[0].code() in SILENT:
                raise Unreachable("Kafka", self._bootstrap, error.args[0].str()) from error
            logger.info("no id of topic %s: %s", self._topic, error, extra={"event": "no_topic_id"})
            return None
        return None if found == _NO_ID else found
