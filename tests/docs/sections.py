"""Sections of pages that are written by the code: between two marks, the rest by hand."""

import re
from pathlib import Path


def section(file: Path, name: str) -> str:
    """What stands in a page's section now."""
    text = file.read_text(encoding="utf-8")
    found = re.search(rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
    assert found is not None, f"{file.name} has no section {name}"
    return found[1].strip()


def write(file: Path, name: str, content: str) -> None:
    """Write a page's section."""
    section(file, name)
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = file.read_text(encoding="utf-8").split(begin, 1)
    _, after = rest.split(end, 1)
    file.write_text(f"{before}{begin}\n{content}\n\n{end}{after}", encoding="utf-8")
