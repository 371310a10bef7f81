"""Writes the how-to page about permissions: ``python -m tests.coordinator.privilege_page``.

A test compares the page with what this would write, so the lists are those the code asks for.
"""

from pathlib import Path

from millstream_coordinator.jetstream.permissions import Role, config_text, needs

PAGE = Path(__file__).parents[2] / "coordinator" / "docs" / "how-to" / "least-privilege.md"
GROUP, STREAM = "delays", "FLIGHTS"

_HEAD = f"""\
# Give a group the permissions it needs, and no more

<!-- Written by `python -m tests.coordinator.privilege_page`: change it there. -->

A group needs few subjects. Below is, for each kind of process, what a user must be allowed in
nats-server's configuration, for a group `{GROUP}` that reads the stream `{STREAM}`. A test runs a
group on nats-server with exactly these permissions, and takes each one away in turn.

Replace `{GROUP}` and `{STREAM}`, or have the text written, by
`millstream coordinator permissions {GROUP} --stream {STREAM} --role leader` or in Python:

```python
from millstream_coordinator.jetstream.permissions import Role, config_text, needs

print(config_text(needs(Role.LEADER, "{GROUP}", ["{STREAM}"])))
```

What is missing is found when a member starts, before it changes anything, and named in one line:

```text
group 'delays': no permission to publish to '$JS.API.CONSUMER.CREATE.FLIGHTS.>'
```

"""
_ROLES = {
    Role.LEADER: """\
## A worker that may lead

The default: every worker of a group may become its leader. It also makes the group's bucket and,
where the group stores dead letters, their stream.
""",
    Role.WORKER: """\
## A worker that never leads

`Group(…, can_lead=False)`. It cannot make the bucket: a leading member, or
`millstream coordinator create`, has to be there first.
""",
    Role.OBSERVER: """\
## Who only looks

`millstream coordinator describe`, `members`, `lag`, `events`, `dlq ls`.
""",
    Role.ADMIN: """\
## Who operates the group

Pause, resume, move, drain, resize, reset, dead letters, delete. To publish dead letters again, add
the subjects of the stream itself; to let `coordinator create` make streams, add
`$JS.API.STREAM.CREATE.<stream>` and `$JS.API.STREAM.UPDATE.<stream>`. A command that lacks one says
which, with exit code 2, before it changes anything.
""",
    Role.SERVICE: """\
## The service

`millstream coordinator run`: it leads, and does what operators ask for by request, so it has what
both need. With `--all` it asks for the names of all streams; the lines of each group are needed.
""",
}
_TAIL = """\
## Notes

- **Another inbox prefix** (`nats.connect(inbox_prefix=…)`): put it where `_INBOX.>` stands. The
  group takes the client's.
- **Dead letters**: a group that retries for ever (the default) needs nothing of
  `MILLSTREAM_DLQ_…` and `millstream.dlq.…`.
- **Domains and imports**: with `domain="hub"` every `$JS.API.` reads `$JS.hub.API.`, and a bucket's
  keys are written as `$JS.hub.API.$KV.…`; with `api_prefix="js.home"` it is `js.home.` and
  `js.home.$KV.…`. An account that imports another's JetStream imports three services: `$JS.API.>`
  (exported with `response_type: stream`) and `$KV.>` under the prefix, and `$JS.ACK.>` as it is.
- **`allow_responses`** lets a member answer the probes of others; without it, publishing to their
  inboxes would have to be allowed.
- **One stream per partition**: the lines of the stream are there once for each of them.
"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    for role, words in _ROLES.items():
        snippet = config_text(needs(role, GROUP, [STREAM]))
        parts.append(f"{words}\n```text\n{snippet}```\n\n")
    return "".join([*parts, _TAIL])


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text(), encoding="utf-8")
