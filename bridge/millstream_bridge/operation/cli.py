"""``millstream bridge``: run, verify, barrier, kafka-mock."""

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from ..errors import BridgeError, ConfigurationError
from ..kafka.mock import MockKafka
from ..model import BridgeReport, Positions, Proof
from ..moving.barrier import barrier
from ..moving.progress import progress_lines
from ..moving.runner import Bridge
from ..proof.verify import verify
from .settings import BridgeSettings, load

T = TypeVar("T")

app = typer.Typer(
    name="bridge",
    help="Kafka topics into NATS subjects: each record once, in order, with everything it had.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Kafka = Annotated[str | None, typer.Option(help="Kafka's bootstrap servers.")]
Nats = Annotated[str | None, typer.Option(help="URL of the NATS server with JetStream.")]
Topic = Annotated[str | None, typer.Option(help="The Kafka topic.")]
StreamName = Annotated[str | None, typer.Option(help="The stream; made if it is not there.")]
Subject = Annotated[
    str | None, typer.Option(help="Subject template, as in 'flights.{partition}.{key}'.")
]
Shared = Annotated[
    bool | None, typer.Option("--shared", help="Others publish to these subjects too.")
]
NullKey = Annotated[str | None, typer.Option(help="The subject token of the null key.")]
RouteName = Annotated[
    str | None, typer.Option(help="The route's name in Millstream-Origin; by default the topic's.")
]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Write pid and addresses here, as JSON, when ready.")
]
EndWithStdin = Annotated[
    bool, typer.Option("--end-with-stdin", help="End when standard input ends.")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Write the report here, as JSON.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@app.callback()
def _options(context: typer.Context) -> None:
    """Kafka topics into NATS subjects: each record once, in order, with everything it had."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command("run")
def run_command(
    kafka: Kafka = None,
    nats: Nats = None,
    topic: Topic = None,
    stream: StreamName = None,
    subject: Subject = None,
    shared: Shared = None,
    null_key: NullKey = None,
    route: RouteName = None,
    stop_at_end: Annotated[
        bool, typer.Option("--stop-at-end", help="Stop when all that is there now is stored.")
    ] = False,
    ready_file: ReadyFile = None,
    end_with_stdin: EndWithStdin = False,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Move the topic's records into the stream: what is there, then what comes."""
    with _errors():
        settings = load(
            kafka=kafka,
            nats=nats,
            topic=topic,
            stream=stream,
            subject=subject,
            shared=shared,
            null_key=null_key,
            route=route,
        )
        result = _run(_run_bridge(settings, stop_at_end, ready_file, end_with_stdin))
        summary = run_summary(result)
        _write_report(report, summary)
        _say(
            summary if as_json else None,
            f"bridge {result.topic} → {result.stream}: {result.ended};"
            f" {result.records} records stored in {result.seconds:.1f} s"
            f" ({result.records_per_second:,.0f}/s), {result.sessions} sessions",
        )


@app.command("verify")
def verify_command(
    kafka: Kafka = None,
    nats: Nats = None,
    topic: Topic = None,
    stream: StreamName = None,
    subject: Subject = None,
    shared: Shared = None,
    null_key: NullKey = None,
    route: RouteName = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Compare both sides record by record; exit 1 and name the first difference if there is one."""
    with _errors():
        settings = load(
            kafka=kafka,
            nats=nats,
            topic=topic,
            stream=stream,
            subject=subject,
            shared=shared,
            null_key=null_key,
            route=route,
        )
        proof = _run(
            verify(
                kafka=settings.kafka,
                nats=settings.nats,
                route=settings.as_route,
                kafka_options=settings.kafka_options,
            )
        )
        summary = proof_summary(proof)
        _write_report(report, summary)
        if as_json:
            _say(summary, "")
        else:
            _print_proof(proof)
    if not proof.equal:
        raise typer.Exit(1)


@app.command("barrier")
def barrier_command(
    kafka: Kafka = None,
    nats: Nats = None,
    topic: Topic = None,
    stream: StreamName = None,
    subject: Subject = None,
    shared: Shared = None,
    null_key: NullKey = None,
    route: RouteName = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0.0)] = 60.0,
    as_json: Json = False,
) -> None:
    """Return when everything that is in the topic now is stored; exit 1 when time is up."""
    with _errors():
        settings = load(
            kafka=kafka,
            nats=nats,
            topic=topic,
            stream=stream,
            subject=subject,
            shared=shared,
            null_key=null_key,
            route=route,
        )
        try:
            goal = _run(
                barrier(
                    kafka=settings.kafka,
                    nats=settings.nats,
                    route=settings.as_route,
                    timeout_s=timeout,
                    kafka_options=settings.kafka_options,
                )
            )
        except TimeoutError as error:
            _fail(str(error), 1, error)
        _say(
            {
                "schema": "millstream.bridge.barrier/1",
                "topic": settings.topic,
                "stream": settings.stream,
                "positions": _text_keys(goal),
            }
            if as_json
            else None,
            f"barrier {settings.topic} → {settings.stream}: all stored up to {dict(goal)}",
        )


@app.command("kafka-mock")
def kafka_mock_command(
    topic: Annotated[list[str], typer.Option(help="NAME:PARTITIONS; may be given again.")],
    brokers: Annotated[int, typer.Option(help="How many brokers.", min=1, max=100)] = 1,
    ready_file: ReadyFile = None,
    end_with_stdin: EndWithStdin = False,
) -> None:
    """Serve librdkafka's mock cluster on 127.0.0.1 until told to end; its records are in memory."""
    with _errors():
        topics = dict(_topic(text) for text in topic)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        if end_with_stdin:
            _call_at_end_of_stdin(ended.set)
        with MockKafka(topics, brokers=brokers) as mock:
            _write_ready(ready_file, {"kafka": mock.bootstrap})
            typer.echo(f"mock Kafka is ready at {mock.bootstrap}")
            ended.wait()


def run_summary(report: BridgeReport) -> dict[str, Any]:
    """The JSON form of a run's report, schema ``millstream.bridge.run/1``."""
    return {
        "schema": "millstream.bridge.run/1",
        "topic": report.topic,
        "stream": report.stream,
        "ended": str(report.ended),
        "records": report.records,
        "payload_bytes": report.payload_bytes,
        "seconds": round(report.seconds, 3),
        "records_per_second": round(report.records_per_second, 1),
        "sessions": report.sessions,
        "refusals": report.refusals,
        "stood_back": report.stood_back,
        "foreign_seqs": list(report.foreign_seqs),
        "positions": _text_keys(report.positions),
    }


def proof_summary(proof: Proof) -> dict[str, Any]:
    """The JSON form of a proof, schema ``millstream.bridge.verify/1``."""

    def side(value: Any) -> dict[str, Any]:
        return {
            "count": value.count,
            "first_offset": value.first_offset,
            "last_offset": value.last_offset,
            "digest": value.digest,
        }

    difference = proof.difference
    return {
        "schema": "millstream.bridge.verify/1",
        "topic": proof.topic,
        "stream": proof.stream,
        "equal": proof.equal,
        "records": proof.records,
        "foreign": proof.foreign,
        "older": proof.older,
        "seconds": round(proof.seconds, 3),
        "difference": None
        if difference is None
        else {
            "kafka_partition": difference.kafka_partition,
            "offset": difference.offset,
            "seq": difference.seq,
            "what": difference.what,
        },
        "partitions": {
            str(number): {
                "equal": partition.is_equal,
                "kafka": side(partition.kafka),
                "nats": side(partition.nats),
            }
            for number, partition in sorted(proof.partitions.items())
        },
    }


def main() -> None:
    """Run ``python -m millstream_bridge``."""
    app(prog_name="millstream bridge")


async def _run_bridge(
    settings: BridgeSettings, stop_at_end: bool, ready_file: Path | None, end_with_stdin: bool
) -> BridgeReport:
    loop = asyncio.get_running_loop()

    def on_ready(positions: Positions) -> None:
        _write_ready(
            ready_file,
            {
                "kafka": settings.kafka,
                "nats": settings.nats,
                "topic": settings.topic,
                "stream": settings.stream,
            },
        )
        typer.echo(
            f"bridge {settings.topic} → {settings.stream} is ready"
            f" and goes on after {sum(positions.values()):,} offsets stored before",
            err=True,
        )

    bridge = Bridge(
        kafka=settings.kafka,
        nats=settings.nats,
        route=settings.as_route,
        kafka_options=settings.kafka_options,
        on_ready=on_ready,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    if end_with_stdin:
        _call_at_end_of_stdin(lambda: loop.call_soon_threadsafe(bridge.stop))
    lines = asyncio.create_task(progress_lines(bridge), name="progress")
    try:
        return await bridge.run(stop_at_end=stop_at_end)
    finally:
        lines.cancel()
        with suppress(asyncio.CancelledError):
            await lines


def _run(work: Coroutine[Any, Any, T]) -> T:
    _configure_logging()
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _configure_logging() -> None:
    logging.basicConfig(
        level=os.environ.get("MILLSTREAM_LOG", "WARNING").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


class _errors:  # noqa: N801 - reads as a statement
    """Turn the bridge's errors into one line on stderr and their exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BridgeError):
            _fail(str(error), error.exit_code, error)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(130) from error


def _fail(text: str, code: int, cause: BaseException) -> NoReturn:
    typer.echo(f"millstream bridge: {text}", err=True)
    raise typer.Exit(code) from cause


def _say(summary: dict[str, Any] | None, line: str) -> None:
    typer.echo(line if summary is None else json.dumps(summary))


def _text_keys(positions: Positions) -> dict[str, int]:
    return {str(partition): offset for partition, offset in sorted(positions.items())}


def _print_proof(proof: Proof) -> None:
    from rich.console import Console  # noqa: PLC0415 - 0.1 s that only tables need
    from rich.table import Table  # noqa: PLC0415

    table = Table("PARTITION", "RECORDS", "FIRST", "LAST", "NATS RECORDS", "DIGEST", "EQUAL")
    for number, partition in sorted(proof.partitions.items()):
        kafka, nats = partition.kafka, partition.nats
        first, last = kafka.first_offset, kafka.last_offset
        table.add_row(
            str(number),
            str(kafka.count),
            "-" if first is None else str(first),
            "-" if last is None else str(last),
            str(nats.count),
            kafka.digest[:16],
            "yes" if partition.is_equal else "NO",
        )
    Console().print(table)
    rate = proof.records / proof.seconds if proof.seconds else 0.0
    typer.echo(
        f"{'equal' if proof.equal else 'DIFFERENT'}: {proof.records} records"
        f" in {proof.seconds:.1f} s ({rate:,.0f}/s), {proof.foreign} foreign messages"
    )
    if (difference := proof.difference) is not None:
        at = "" if difference.seq is None else f" (seq {difference.seq})"
        typer.echo(
            f"first difference: partition {difference.kafka_partition}"
            f" offset {difference.offset}{at}: {difference.what}"
        )


def _topic(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":")
    if not name or not number.isdecimal() or int(number) < 1:
        raise ConfigurationError(f"--topic {text!r} is not NAME:PARTITIONS")
    return name, int(number)


def _write_ready(path: Path | None, facts: dict[str, str]) -> None:
    if path is not None:
        _write_by_rename(path, {"pid": os.getpid(), **facts})


def _write_report(path: Path | None, summary: dict[str, Any]) -> None:
    if path is not None:
        _write_by_rename(path, summary)


def _write_by_rename(path: Path, content: dict[str, Any]) -> None:
    """A reader sees the whole file or none."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
        Path(name).replace(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from error


def _call_at_end_of_stdin(call: Callable[[], object]) -> None:
    """A parent that is gone, however it went, closes the pipe that is our standard input."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):
            call()

    threading.Thread(target=watch, name="stdin", daemon=True).start()
