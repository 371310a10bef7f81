"""What the coordinator's pages say is so, and one of the bridge's: all on them is run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.servers import EMBEDDED, Server

from .pages import (
    README,
    RUNNABLE,
    Block,
    Shell,
    anchors,
    blocks,
    check,
    commands,
    links,
    matches,
    pages,
    shell,
)

NAMES = {str(page.relative_to(page.parents[2])): page for page in pages()}
WITH_SESSION = [
    name
    for name, page in NAMES.items()
    if any(it.kind in RUNNABLE and not (it.file or it.excuse) for it in blocks(page))
]


@pytest.mark.parametrize("name", WITH_SESSION)
def test_a_page_can_be_followed_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "page"
    store.mkdir()
    folder.mkdir()
    with Server(EMBEDDED, store) as server, shell(folder, server.url) as typed:
        for block in blocks(NAMES[name]):
            where = f"{name}, line {block.line}"
            if block.file is not None:
                (folder / block.file).write_text(block.text, encoding="utf-8")
            elif block.excuse is not None:
                continue
            elif block.kind == "python":
                run_python(block, folder, typed, where)
            elif block.kind == "console":
                for command in commands(block):
                    check(typed, command, where)


def run_python(block: Block, folder: Path, typed: Shell, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=folder,
        env=typed.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{where}: {done.stderr}"
    if block.output is not None:
        said = block.output.splitlines()
        assert matches(done.stdout, said, loosely=False), f"{where}: printed\n{done.stdout}"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_leads_only_where_something_is(name: str) -> None:
    page = NAMES[name]
    for link in links(page):
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{name} links to {link}"
        if anchor:
            assert anchor in anchors(there), f"{name} links to {link}"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_cannot_run_says_why(name: str) -> None:
    for block in blocks(NAMES[name]):
        assert block.excuse is None or block.kind in RUNNABLE, f"{name}, line {block.line}"


def test_a_page_that_lies_is_found_out() -> None:
    printed = "GROUP    LAG\nbilling  12\n"

    assert matches(printed, ["GROUP LAG", "billing 7"])
    assert matches(printed, ["…", "billing 7"])
    assert not matches(printed, ["GROUP LAG", "billing none"])
    assert not matches(printed, ["GROUP LAG"])
    assert matches("order 1\norder 2\n", ["order 1", "order 2"], loosely=False)
    assert not matches("order 2\norder 1\n", ["order 1", "order 2"], loosely=False)


def test_every_file_that_the_readme_names_is_there() -> None:
    package = README.parent / "millstream_coordinator"
    text = README.read_text(encoding="utf-8").partition("## Which room is what")[2]

    named = re.findall(r"`(\w+\.py)`", text)

    assert len(named) > 20
    assert set(named) <= {it.name for it in package.rglob("*.py")}
