"""What our Kafka clients have in common: who they say they are, and where their complaints go."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from ..errors import ConfigurationError, Unreachable

T = TypeVar("T")

CLIENT_ID = "millstream-bridge"
MOCK_CLUSTER = "mockCluster"
"""How the id of librdkafka's mock cluster begins."""

client_logger = logging.getLogger(f"{__name__}.librdkafka")
# Its complaints of every connection attempt are of use to who debugs it; set the level for them.
client_logger.setLevel(logging.CRITICAL)

SILENT: Final = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
    }
)
"""What a call says that got no answer."""

LEADER_MOVES: Final = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
)
"""Said of a partition for a moment: while a leader is elected, or on a new topic."""


def admin_settings(bootstrap: str, options: Mapping[str, str] | None) -> dict[str, Any]:
    """Librdkafka's settings for one who only asks: what goes wrong comes with the answers."""
    return {
        "bootstrap.servers": bootstrap,
        "client.id": CLIENT_ID,
        "error_cb": lambda _: None,
        **(options or {}),
    }


def refuse_ours(options: Mapping[str, str] | None, ours: Mapping[str, object]) -> None:
    """ConfigurationError: an option changes a setting on which it depends that nothing is lost."""
    for name, value in (options or {}).items():
        if name in ours and value.lower() != str(ours[name]).lower():
            needed = str(ours[name]).lower()
            raise ConfigurationError(f"Kafka option {name}: the bridge needs it to be {needed}")


_REMEDIES: Final = {
    **dict.fromkeys(
        (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC),
        "`millstream bridge assess` shows the topics there are",
    ),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "`millstream bridge permissions` lists what is needed",
}


def with_remedy(error: KafkaError) -> str:
    """What Kafka says, and what can be done about it."""
    remedy = _REMEDIES.get(error.code())
    return f"{error.str()}; {remedy}" if remedy else error.str()


def error_text(error: KafkaException) -> str:
    """What the client says of a call that failed."""
    detail = error.args[0] if error.args else error
    return detail.str() if isinstance(detail, KafkaError) else str(detail)


FIRST_S: Final = 1.0
"""After which time without an answer people hear that it is waited for."""
_TOLD_OF: Final[set[str]] = set()
"""Once in a process is enough: a project has hundreds of routes on one Kafka."""
waiting_logger = logging.getLogger(f"{__name__}.waiting")


class Complaints:
    """Why a client does not come through: names, certificates, passwords, closed ports.

    A call that waited in vain says only that it did; the client tells the reason beside it.
    """

    def __init__(self) -> None:
        self._latest = ""

    def note(self, error: KafkaError) -> None:
        """For ``error_cb``."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._latest = error.str().partition(" (after ")[0]

    def forget(self) -> None:
        """The client came through."""
        self._latest = ""

    def metadata(
        self,
        bootstrap: str,
        ask: Callable[[float], T],
        timeout_s: float,
        serve: Callable[[], object],
    ) -> T:
        """What ``ask`` returns within ``timeout_s``; that it takes long is logged, once.

        Raises what ``ask`` raises.
        """
        if bootstrap in _TOLD_OF or timeout_s <= FIRST_S:
            return ask(timeout_s)
        try:
            return ask(FIRST_S)
        except KafkaException as error:
            if error.args[0].code() not in SILENT:
                raise
        rest_s = timeout_s - FIRST_S
        if bootstrap not in _TOLD_OF:
            _TOLD_OF.add(bootstrap)
            serve()
            why = f" ({self._latest})" if self._latest else ""
            told = "Kafka at %s has not answered yet%s; it is asked for %g s more"
            waiting_logger.info(told, bootstrap, why, rest_s, extra={"event": "kafka_waited_for"})
        return ask(rest_s)

    def unreachable(
        self, bootstrap: str, error: KafkaException, serve: Callable[[], object] | None
    ) -> Unreachable:
        """The error of a call with its reason. ``serve`` lets the client tell what it has to."""
        if serve is not None:
            serve()
        reason = error_text(error)
        if self._latest and error.args[0].code() in SILENT:
            reason = self._latest
        return Unreachable("Kafka", bootstrap, reason)
