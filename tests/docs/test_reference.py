"""The reference pages say what the code says."""

import inspect
import re
from datetime import timedelta

import pytest

from millstream_coordinator import Group, naming
from millstream_coordinator.machine.group import Phase
from millstream_coordinator.machine.ownership import OwnershipState
from millstream_coordinator.model import FailurePolicy, PartitionState, Timing
from millstream_coordinator.operation.micro import NAME
from millstream_coordinator.partitioning.key import KEY_HEADER

from . import states
from .pages import DOCS
from .reference import SECTIONS, STATES, shown
from .sections import section

LAYOUT = (DOCS / "reference" / "kv-layout.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, names in SECTIONS.items() for name in names]
)
def test_what_a_page_takes_from_the_code_is_what_the_code_says(page: str, name: str) -> None:
    assert section(DOCS / page, name) == SECTIONS[page][name]().strip(), (
        f"run python -m tests.docs.reference {page}"
    )


def test_every_argument_of_a_group_is_in_the_table_with_its_default() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", page.partition("### Key rules")[0], re.M))

    arguments = list(inspect.signature(Group).parameters.values())

    assert list(table) == [it.name for it in arguments]
    for one in arguments:
        assert table[one.name].strip("`") == _default(one.default), one.name


def _default(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, FailurePolicy):
        return f'"{default.value}"'
    if isinstance(default, timedelta):
        return shown(default)
    return str(default)


ROOMS = (DOCS.parent / "README.md").read_text(encoding="utf-8").partition("## Which room")[2]
CODE = DOCS.parent / "millstream_coordinator"


@pytest.mark.parametrize("room", sorted(it.name for it in CODE.iterdir() if it.is_dir()))
def test_every_room_of_the_package_is_in_its_readme(room: str) -> None:
    assert room == "__pycache__" or f"`{room}/`" in ROOMS


@pytest.mark.parametrize("file", sorted(it.name for it in (CODE / "machine").glob("[a-z]*.py")))
def test_every_file_of_the_machine_is_in_the_readme(file: str) -> None:
    assert f"`{file}`" in ROOMS


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`(\w+)\.py`", ROOMS))))
def test_every_file_the_readme_names_is_there(file: str) -> None:
    assert [*CODE.rglob(f"{file}.py")]


@pytest.mark.parametrize("header", [*naming.LETTER_HEADERS, naming.REPLAY, KEY_HEADER])
def test_every_header_is_on_the_layout_page(header: str) -> None:
    assert f"`{header}" in LAYOUT


@pytest.mark.parametrize(
    "name",
    [
        naming.bucket("<group>"),
        *(naming.CONFIG_KEY, naming.CONTROL_KEY, naming.LEADER_KEY, naming.member_key("<member>")),
        *(naming.done_key("<member>"), f"{naming.PARTITION_PREFIX}<n>"),
        *(f"{naming.PARKED_PREFIX}<n>", f"{naming.EVENT_PREFIX}<i>"),
        naming.heartbeat("<group>", "<member>"),
        naming.probe("<group>", "<member>"),
        naming.event("<group>", "<member>"),
        naming.release("<group>"),
        f"{naming.REQUESTS}.<request>",
        naming.dead_letter_stream("<group>"),
        naming.dead_letter("<group>", "<mark>", "<key token>"),
        naming.work_stream("<group>"),
        f"{naming.work_prefix('<group>')}.<partition>",
    ],
)
def test_every_name_on_the_server_is_on_the_layout_page(name: str) -> None:
    assert f"`{name}" in LAYOUT


TIMING = Timing()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("reference/kv-layout.md", f"its lease of {TIMING.lease_s:g} s"),
        ("reference/kv-layout.md", f"Every {TIMING.heartbeat_interval_s * 1000:g} ms"),
        ("reference/kv-layout.md", f"heartbeat timeout ({TIMING.heartbeat_timeout_s:g} s)"),
        (
            "reference/kv-layout.md",
            f"every {TIMING.save_interval_s * 1000:g} ms or {TIMING.save_every:,} messages",
        ),
        (STATES, f"heartbeat timeout ({TIMING.heartbeat_timeout_s:g} s)"),
        (STATES, f"It gets {TIMING.reconnect_grace_s * 1000:g} ms to"),
        (STATES, f"it judges nobody for {TIMING.restart_grace_s:g} s"),
        (STATES, f"saved every {TIMING.save_interval_s * 1000:g} ms"),
        ("how-to/cluster.md", f"nobody is judged until {TIMING.restart_grace_s:g} s after"),
        ("how-to/deploy.md", f"within {TIMING.batch_s * 1000:g} ms of each other"),
        ("how-to/deploy.md", f"up to {TIMING.batch_max_s:g} s after the first"),
    ],
)
def test_a_time_on_a_page_is_the_one_in_the_code(page: str, said: str) -> None:
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert said in text


def test_the_service_is_called_as_the_page_on_deploying_calls_it() -> None:
    assert f"nats micro info {NAME}" in (DOCS / "how-to" / "deploy.md").read_text(encoding="utf-8")


def test_simulated_groups_do_nothing_that_the_state_diagrams_do_not_show() -> None:
    for name, arrows in states.observed(states.SOME).items():
        shown = states.drawn(section(DOCS / STATES, name))
        assert states.named(arrows) <= shown, f"run python -m tests.docs.reference {STATES}"


def test_every_state_is_in_its_diagram() -> None:
    kinds = {"member": Phase, "partition": PartitionState, "ownership": OwnershipState}
    for name, kind in kinds.items():
        shown = {it for arrow in states.drawn(section(DOCS / STATES, name)) for it in arrow}
        wanted = {str(it.value) if kind is PartitionState else it.name for it in kind}
        assert wanted <= shown
