"""The routes of a project as Kafka's topics are now."""

from collections.abc import Sequence

from ..errors import ConfigurationError
from ..kafka.admin import KafkaAdmin
from ..model import Route
from ..records.lints import Lint, lint
from .file import Project
from .rule import routes_of


async def current_routes(project: Project) -> list[Route]:
    """Every route to work on; asks Kafka only where the project has patterns.

    ConfigurationError: none is left, one that was named is not there, or two get in each other's
    way. Unreachable.
    """
    topics: Sequence[str] = ()
    if project.has_patterns:
        admin = KafkaAdmin(project.kafka, options=project.kafka_options)
        try:
            found = await admin.topics()
        finally:
            await admin.close()
        topics = [it.name for it in found.values() if not it.is_internal]
    routes = routes_of(project.rules, topics)
    check_together(routes)
    if project.only:
        missing = set(project.only) - {route.name for route in routes}
        if missing:
            names = ", ".join(sorted(missing))
            known = ", ".join(route.name for route in routes) or "none"
            raise ConfigurationError(f"{project.where}: no route {names} (there are: {known})")
        routes = [route for route in routes if route.name in project.only]
    if not routes:
        raise ConfigurationError(f"{project.where}: no topic at {project.kafka} matches any route")
    return routes


def check_together(routes: Sequence[Route]) -> list[Lint]:
    """The warnings about these routes.

    ConfigurationError: one would lose records, or two would write one subject space.
    """
    found = lint(routes)
    for finding in found:
        if finding.severity == "error":
            raise ConfigurationError(f"route of topic {finding.topic}: {finding.what}")
    return found
