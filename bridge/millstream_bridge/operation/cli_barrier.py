"""``millstream bridge barrier``: return when what is in Kafka now is stored."""

import asyncio
from typing import Annotated, Any

import typer

from millstream_coordinator.operation.process import CHECK_FAILED

from ..model import Positions, Route
from ..moving.barrier import barrier as wait
from ..project.file import Project
from ..project.routes import current_routes
from .console import AsJson, command, fail, project_document, say, text_keys
from .process import run_loop


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
        try:
            reached = run_loop(_wait(project, timeout))
        except TimeoutError as error:
            fail(str(error), CHECK_FAILED, error)
        if as_json:
            documents = [_document(route, goal) for route, goal in reached]
            say(project_document("barrier", documents) if project.is_file else documents[0], "")
            return
        for route, goal in reached:
            done = f"all stored up to {dict(goal)}"
            typer.echo(f"barrier {route.topic} → {route.stream}: {done}")


async def _wait(project: Project, timeout_s: float) -> list[tuple[Route, Positions]]:
    """All routes at once: each has the whole time."""
    routes = await current_routes(project)
    waits = [
        wait(
            kafka=project.kafka,
            nats=project.nats,
            route=route,
            timeout_s=timeout_s,
            kafka_options=dict(project.kafka_options),
        )
        for route in routes
    ]
    return list(zip(routes, await asyncio.gather(*waits), strict=True))


def _document(route: Route, goal: Positions) -> dict[str, Any]:
    return {
        "schema": "millstream.bridge.barrier/1",
        "topic": route.topic,
        "stream": route.stream,
        "positions": text_keys(goal),
    }
