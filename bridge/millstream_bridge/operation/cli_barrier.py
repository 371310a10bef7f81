"""``millstream bridge barrier``: return when what is in Kafka now is stored."""

from typing import Annotated

import typer

from ..moving.barrier import barrier as wait
from .console import CHECK_FAILED, AsJson, command, fail, say, text_keys
from .process import run_loop
from .settings import BridgeSettings


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "barrier")
    def barrier(
        settings: BridgeSettings,
        timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0.0)] = 60.0,
        as_json: AsJson = False,
    ) -> None:
        """Return when everything that is in the topic now is stored; exit 1 when time is up."""
        try:
            goal = run_loop(
                wait(
                    kafka=settings.kafka,
                    nats=settings.nats,
                    route=settings.as_route,
                    timeout_s=timeout,
                    kafka_options=settings.kafka_options,
                )
            )
        except TimeoutError as error:
            fail(str(error), CHECK_FAILED, error)
        say(
            {
                "schema": "millstream.bridge.barrier/1",
                "topic": settings.topic,
                "stream": settings.stream,
                "positions": text_keys(goal),
            }
            if as_json
            else None,
            f"barrier {settings.topic} → {settings.stream}: all stored up to {dict(goal)}",
        )
