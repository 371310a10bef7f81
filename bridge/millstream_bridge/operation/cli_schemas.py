"""``millstream bridge schemas``: a registry's schemas into a bucket in NATS."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream_coordinator.operation.process import DONE, Stopper
from millstream_coordinator.operation.texts import help_end

from ..jetstream.target import NatsTarget
from ..model import counted
from ..project.file import load_project
from ..schemas.copying import EVERY_S, Copied, copy_schemas, follow_schemas
from ..schemas.registry import Registry
from ..schemas.schema import BUCKET
from .console import PROGRAM, AsJson, errors, say
from .process import run_loop

_PASSWORD, _TOKEN = "MILLSTREAM_BRIDGE_REGISTRY_PASSWORD", "MILLSTREAM_BRIDGE_REGISTRY_TOKEN"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "schemas",
        epilog=help_end(
            PROGRAM, "schemas --registry http://registry:8081 --project project.toml --follow"
        ),
    )
    def schemas(
        registry: Annotated[
            str,
            typer.Option(
                envvar="MILLSTREAM_BRIDGE_REGISTRY",
                help=f"URL of the registry's Confluent API. A password or token is in {_PASSWORD}"
                f" or {_TOKEN}.",
                show_default=False,
            ),
        ],
        nats: Annotated[
            str, typer.Option(envvar="MILLSTREAM_BRIDGE_NATS", help="URL of the NATS server.")
        ] = "nats://127.0.0.1:4222",
        project: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Take NATS from this project instead.")
        ] = None,
        user: Annotated[str, typer.Option(help="The registry's user.")] = "",
        ca: Annotated[
            Path | None, typer.Option(help="Who must have signed the registry's certificate.")
        ] = None,
        follow: Annotated[
            bool, typer.Option("--follow", help="Keep the copy current until stopped.")
        ] = False,
        every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = EVERY_S,
        as_json: AsJson = False,
    ) -> None:
        """Copy every schema with its versions, references and compatibility; nothing is removed.

        Records keep their bytes and schema ids. Who reads them finds the schema of an id in the
        bucket, also when the registry is gone.
        """
        with errors():
            source = Registry(
                url=registry,
                user=user,
                password=os.environ.get(_PASSWORD, ""),
                token=os.environ.get(_TOKEN, ""),
                ca=ca,
            )
            target = NatsTarget(url=nats) if project is None else load_project(project).nats

            def tell(copied: Copied) -> None:
                if not follow or copied.written or copied.configs:
                    say(_document(copied) if as_json else None, _line(copied))

            code = run_loop(_copy(source, target, every if follow else None, tell))
        raise typer.Exit(code)


async def _copy(registry: Registry, nats: NatsTarget, every_s: float | None, tell: Any) -> int:
    if every_s is None:
        tell(await copy_schemas(registry=registry, nats=nats))
        return DONE
    following = asyncio.create_task(
        follow_schemas(registry=registry, nats=nats, every_s=every_s, on_pass=tell)
    )
    stopper = Stopper(following.cancel)
    with suppress(asyncio.CancelledError):
        await following
    return stopper.code


def _document(copied: Copied) -> dict[str, Any]:
    return {"schema": "millstream.bridge.schemas/1", "bucket": BUCKET, **copied._asdict()}


def _line(copied: Copied) -> str:
    return (
        f"schemas: {counted(copied.subjects, 'subject')}, {counted(copied.versions, 'version')};"
        f" {copied.written} new in bucket {BUCKET},"
        f" {counted(copied.configs, 'compatibility setting')} new"
        + (f"; {copied.withheld} deleted and not shown" if copied.withheld else "")
    )
