"""``millstream bridge kafka-mock``: a Kafka without Java, for tests and demos."""

import signal
import threading
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..kafka.mock import MockKafka
from .console import EndWithStdin, ReadyFile, errors
from .process import call_at_end_of_stdin, write_ready


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("kafka-mock")
    def kafka_mock(
        topic: Annotated[list[str], typer.Option(help="NAME:PARTITIONS; may be given again.")],
        brokers: Annotated[int, typer.Option(help="How many brokers.", min=1, max=100)] = 1,
        ready_file: ReadyFile = None,
        end_with_stdin: EndWithStdin = False,
    ) -> None:
        """Serve librdkafka's mock cluster on 127.0.0.1 until told to end; all is in memory."""
        with errors():
            topics = dict(_topic(text) for text in topic)
            ended = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: ended.set())
            if end_with_stdin:
                call_at_end_of_stdin(ended.set)
            with MockKafka(topics, brokers=brokers) as mock:
                write_ready(ready_file, {"kafka": mock.bootstrap})
                typer.echo(f"mock Kafka is ready at {mock.bootstrap}")
                ended.wait()


def _topic(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    if not name or not number.isdecimal() or int(number) < 1:
        raise ConfigurationError(f"--topic {text!r} is not NAME:PARTITIONS")
    return name, int(number)
