"""What our Kafka clients have in common: who they say they are, and where their complaints go."""

import logging
from collections.abc import Mapping
from typing import Any

CLIENT_ID = "millstream-bridge"

client_logger = logging.getLogger(f"{__name__}.librdkafka")
# Its complaints of every connection attempt are of use to who debugs it; set the level for them.
client_logger.setLevel(logging.CRITICAL)


def admin_settings(bootstrap: str, options: Mapping[str, str] | None) -> dict[str, Any]:
    """Librdkafka's settings for one who only asks: what goes wrong comes with the answers."""
    return {
        "bootstrap.servers": bootstrap,
        "client.id": CLIENT_ID,
        "error_cb": lambda _: None,
        **(options or {}),
    }
