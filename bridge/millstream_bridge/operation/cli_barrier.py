"""``millstream bridge barrier``: return when what is in Kafka now is stored."""

import asyncio
from typing import Annotated, Any

import typer

from ..errors import BridgeError
from ..model import Positions, Route
from ..moving.barrier import barrier as wait
from ..project.file import Project
from ..project.routes import current_routes
from .console import AsJson, command, project_document, say, text_keys
from .process import run_loop, tell


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(
        app,
        "barrier",
        examples="""
            barrier --project project.toml --timeout 30
        """,
    )
    def barrier(
        project: Project,
        timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0.0)] = 60.0,
        as_json: AsJson = False,
    ) -> None:
        """Return when everything that is in the topic now is stored; exit 1 when time is up.

        Servers that restart and leaders that are elected meanwhile are waited for; exit 3 when one
        is still away in the end, or was not there at the start.
        """
        waited = run_loop(_wait(project, timeout))
        errors = [it for _, it in waited if isinstance(it, BridgeError)]
        if as_json:
            documents = [_document(route, it) for route, it in waited]
            say(project_document("barrier", documents) if project.is_file else documents[0], "")
        else:
            for route, it in waited:
                if not isinstance(it, BridgeError):
                    ends = ", ".join(f"{p}: {offset}" for p, offset in sorted(it.items()))
                    done = f"all stored; next offsets by partition: {ends}"
                    typer.echo(f"barrier {route.topic} → {route.stream}: {done}")
                elif it is not errors[0]:  # which is told last
                    tell(f"barrier {route.topic} → {route.stream}: {it}")
        if errors:
            raise errors[0]


async def _wait(project: Project, timeout_s: float) -> list[tuple[Route, Positions | BridgeError]]:
    """All routes at once: each has the whole time, and its own end."""

    async def one(route: Route) -> Positions | BridgeError:
        try:
            return await wait(
                kafka=project.kafka,
                nats=project.nats,
                route=route,
                timeout_s=timeout_s,
                kafka_options=dict(project.kafka_options),
            )
        except TimeoutError as error:
            return BridgeError(str(error))
        except BridgeError as error:
            return error

    routes = await current_routes(project)
    return list(zip(routes, await asyncio.gather(*map(one, routes)), strict=True))


def _document(route: Route, outcome: Positions | BridgeError) -> dict[str, Any]:
    found: dict[str, Any]
    if isinstance(outcome, BridgeError):
        found = {"stored": False, "error": str(outcome)}
    else:
        found = {"stored": True, "positions": text_keys(outcome)}
    schema = "millstream.bridge.barrier/1"
    return {"schema": schema, "topic": route.topic, "stream": route.stream, **found}
