"""``millstream coordinator run``: the service."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ..jetstream.permissions import SERVICE, Needs, check
from ..jetstream.wire import without_password
from .connect import connected
from .console import check_group, command, exit_with, fail, option
from .logs import event_line, log_lines
from .metrics import ServiceMetrics
from .micro import Micro
from .process import USAGE_ERROR, Stopper, say, unless_stopped, write_ready
from .service import NewGroup, Service
from .settings import CoordinatorSettings, http_address
from .target import TIMEOUT_S
from .web import Pages

_SETTINGS: dict[str, Any] = {
    "groups": Annotated[
        list[str] | None,
        typer.Argument(metavar="[GROUP]…", help="The groups to lead.", show_default=False),
    ],
    "all_groups": option(bool | None, "All groups, also those that come later.", "--all"),
    "member": option(
        str | None, "This coordinator's name in the groups.", "--member", metavar="NAME"
    ),
    "http": option(str | None, "Serve /metrics and /healthz there.", "--http", metavar="HOST:PORT"),
    "log_json": option(bool | None, "One JSON object per line.", "--log-json"),
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "run",
        settings=_SETTINGS,
        examples="""
run delays billing
run --all --http 0.0.0.0:9464 --log-json
run --config /etc/millstream/coordinator.toml
run delays --stream FLIGHTS --key 'flights.{partition}.{key}' --partitions 12
""",
    )
    def run(
        settings: CoordinatorSettings,
        stream: Annotated[
            str | None, typer.Option(metavar="NAME", help="Stream of a group not there yet.")
        ] = None,
        key: Annotated[
            str | None,
            typer.Option(metavar="RULE", help="Its key rule, as 'flights.{partition}.{key}'."),
        ] = None,
        partitions: Annotated[
            int | None, typer.Option(min=1, metavar="N", help="Its number of partitions.")
        ] = None,
        ready_file: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write pid and urls there when ready.")
        ] = None,
        end_with_stdin: Annotated[
            bool, typer.Option("--end-with-stdin", help="End when standard input ends.")
        ] = False,
    ) -> None:
        """Lead groups until stopped, as a service.

        Several may run; in each group one leads and the others stand by. It is also the NATS micro
        service millstream-coordinator: `nats micro info millstream-coordinator` lists its requests.
        """
        if (stream is None) != (key is None) or (stream is not None and partitions is None):
            fail("run", "a new group is --stream, --key and --partitions", USAGE_ERROR)
        if bool(settings.groups) == settings.all_groups:
            fail("run", "name the groups to lead, or say --all", USAGE_ERROR)
        for name in settings.groups:
            check_group("run", name)
        new = None
        if partitions is not None:
            new = NewGroup(stream=stream, key=key, partitions=partitions)
        exit_with("run", _run(settings, new, ready_file, end_with_stdin=end_with_stdin))


async def _run(
    settings: CoordinatorSettings,
    new: NewGroup | None,
    ready_file: Path | None,
    *,
    end_with_stdin: bool,
) -> int:
    stopper = Stopper(end_with_stdin=end_with_stdin)
    log_lines(as_json=settings.log_json)
    async with AsyncExitStack() as stack:
        connecting = stack.enter_async_context(connected(settings))
        connection = await unless_stopped(stopper.stopping, connecting)
        if connection is None:
            return stopper.code
        await check(connection, Needs(group=None, subscribe=SERVICE), TIMEOUT_S)
        service = Service(connection, settings, new=new)
        metrics = ServiceMetrics(service)
        service.listeners.append(metrics.count)
        if not settings.log_json:
            service.listeners.append(lambda group, event: say(event_line(group, event)))
        url = without_password(settings.nats_url)
        if connection.connected_url is not None:
            url = without_password(connection.connected_url.geturl())
        facts: dict[str, object] = {"nats": url}
        if settings.http is not None:
            pages = Pages(metrics.page, service.health)
            facts["http"] = await stack.enter_async_context(
                pages.serve(*http_address(settings.http))
            )
        facts["micro"] = await stack.enter_async_context(Micro(connection, service).serving())

        def ready() -> None:
            names = sorted(service.names)
            what = ", ".join(names) or "no group yet"
            write_ready(ready_file, {**facts, "groups": names})
            web = f", {facts['http']}" if "http" in facts else ""
            if settings.log_json:
                service.log("ready", groups=names, **facts)
            else:
                say(f"coordinator ready: can lead {what} at {url}{web}")

        await service.run(stopper.stopping, on_ready=ready)
    return stopper.code
