"""The bridge's pages say what the code says, and their links lead somewhere."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from millstream_bridge import Route
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.project.file import load_project
from millstream_bridge.project.rule import routes_of

from .bridge_reference import COMMANDS, DOCS, SECTIONS
from .pages import links
from .sections import section

PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
PROJECT = (DOCS / "reference" / "project-file.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, names in SECTIONS.items() for name in names]
)
def test_what_a_page_takes_from_the_code_is_what_the_code_says(page: str, name: str) -> None:
    assert section(DOCS / page, name) == SECTIONS[page][name]().strip(), (
        "run python -m tests.docs.bridge_reference"
    )


@pytest.mark.parametrize("name", COMMANDS.names())
def test_each_commands_help_ends_with_examples_of_it_that_use_options_it_has(name: str) -> None:
    text, _, examples = COMMANDS.help(name).partition("Examples:")

    lines = [line.partition(" # ")[0].split() for line in examples.strip().splitlines()]
    assert lines
    for line in lines:
        assert " ".join(line).startswith(f"millstream bridge {name}")
        used = {word for word in line if word.startswith("--")}
        assert used <= set(re.findall(r"--[\w-]+", text))


def test_every_key_of_a_route_and_of_nats_is_in_a_table_and_no_other() -> None:
    routes = PROJECT.partition("## `[[route]]`")[2].partition("\n## ")[0]
    nats = PROJECT.partition("## `[nats]`")[2].partition("\n## ")[0]

    def keys(text: str) -> set[str]:
        cells = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
        return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}

    assert keys(routes) == {it.name for it in dataclasses.fields(Route)} | {"topics", "planned"}
    assert keys(nats) == {it.name for it in dataclasses.fields(NatsTarget)}


def test_defaults_in_the_table_are_the_routes() -> None:
    routes = PROJECT.partition("## `[[route]]`")[2].partition("\n## ")[0]
    said = dict(re.findall(r"^\| `(\w+)` \| (\S*?) \|", routes, re.MULTILINE))

    for field in dataclasses.fields(Route):
        if field.default is not dataclasses.MISSING and field.name != "name":
            expected = "none" if field.default is None else field.default
            text = (
                tomllib.loads(f"x = {said[field.name].strip('`')}")["x"]
                if (said[field.name] != "none")
                else "none"
            )
            assert text == expected, field.name


def test_the_example_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```toml\n(.*?)```", PROJECT, re.DOTALL)
    assert example is not None
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    file = tmp_path / "project.toml"
    file.write_text(example[1])

    project = load_project(file)

    assert [it.stream for it in routes_of(project.rules, ["orders.eu"])] == [
        "FLIGHTS",
        "ORDERS-orders-eu",
    ]
    assert project.nats.creds == tmp_path / "bridge.creds"


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target = (page.parent / link.partition("#")[0]).resolve()
        assert not link.partition("#")[0] or target.exists(), link


def test_the_readme_tells_of_every_room_and_of_no_file_that_is_not_there() -> None:
    package = DOCS.parent / "millstream_bridge"
    rows = re.findall(r"^\| (`.+?/`) \| (.*) \|$", README, re.MULTILINE)

    told: set[str] = set()
    for rooms, text in rows:
        inside = re.findall(r"`(\w+)/`", rooms)
        told |= set(inside)
        for name in re.findall(r"`(\w+)`", text):
            assert any((package / room / f"{name}.py").exists() for room in inside), name
    assert told == {it.parent.name for it in package.glob("*/__init__.py")}


def test_the_readme_leads_to_every_page() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        assert f"]({page.relative_to(DOCS.parent).as_posix()})" in README
