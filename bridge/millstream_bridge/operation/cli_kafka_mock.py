"""``millstream bridge kafka-mock``: a Kafka without Java, for tests and demos."""

import re
from pathlib import Path
from typing import Annotated

import typer

from millstream_coordinator.operation.process import Stopper
from millstream_coordinator.operation.texts import help_end

from ..errors import ConfigurationError
from ..kafka.mock import MockKafka
from .console import PROGRAM, EndWithStdin, ReadyFile, errors
from .process import run_loop, write_ready

_TOPIC = re.compile(r"([A-Za-z0-9._-]{1,249}):([1-9]\d{0,3})")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("kafka-mock", epilog=help_end(PROGRAM, "kafka-mock --topic flights:4"))
    def kafka_mock(
        topic: Annotated[list[str], typer.Option(help="NAME:PARTITIONS; may be given again.")],
        brokers: Annotated[int, typer.Option(help="How many brokers.", min=1, max=100)] = 1,
        ready_file: ReadyFile = None,
        end_with_stdin: EndWithStdin = False,
    ) -> None:
        """Serve librdkafka's mock cluster on 127.0.0.1 until told to end; all is in memory."""
        with errors():
            topics = _topics(topic)
            code = run_loop(_serve(topics, brokers, ready_file, end_with_stdin=end_with_stdin))
        raise typer.Exit(code)


async def _serve(
    topics: dict[str, int], brokers: int, ready_file: Path | None, *, end_with_stdin: bool
) -> int:
    stopper = Stopper(end_with_stdin=end_with_stdin)
    with MockKafka(topics, brokers=brokers) as mock:
        write_ready(ready_file, {"kafka": mock.bootstrap})
        typer.echo(f"mock Kafka is ready at {mock.bootstrap}")
        await stopper.stopping.wait()
    return stopper.code


def _topics(texts: list[str]) -> dict[str, int]:
    topics: dict[str, int] = {}
    for name, partitions in map(_topic, texts):
        if name in topics:
            raise ConfigurationError(f"--topic {name} is given twice")
        topics[name] = partitions
    return topics


def _topic(text: str) -> tuple[str, int]:
    found = _TOPIC.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"--topic {text!r} is not NAME:PARTITIONS, with 1 to 9999 partitions"
        )
    return found[1], int(found[2])
