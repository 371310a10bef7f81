"""The command line: nats-server's flags, a broker until it is told to end.

Only what parsing needs is imported here: a server has to be ready within half a second. Exit codes:
0 ended as told, 2 wrong usage, 3 a port or folder can't be used; errors are one line on stderr.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

USAGE_ERROR = 2

HELP = """\
Usage: millstream broker [options]

Server:
  -a, --addr, --net HOST     bind to this address (default 0.0.0.0)
  -p, --port PORT            client port (default 4222; -1 or 0: a free one)
  -n, --name, --server_name NAME
  -P, --pid FILE             write the process id
  -m, --http_port PORT       monitoring port (/varz, /healthz)
      --ports_file_dir DIR   write millstream_<pid>.ports with the URLs in use
      --ready-file FILE      write {"pid", "url", "monitor_url"} when ready
      --end-with-stdin       end when standard input ends

JetStream:
  -js, --jetstream           turn JetStream on
  -sd, --store_dir DIR       its folder (default: millstream in the temporary folder)

Authorization:
      --user USER  --pass PASSWORD
      --auth TOKEN

Logging:
  -D, --debug  -V, --trace  -DV
  -l, --log FILE             log there instead of standard error
  -T, --logtime[=false]      time in log lines (default true)

  -v, --version  -h, --help

Signals: INT, TERM and USR2 end it cleanly, USR1 reopens the log file; HUP does nothing.
"""


class UsageError(Exception):
    """The command line can't be understood."""


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -2
    if not -1 <= port <= 65_535:
        raise UsageError(f"{text!r} is no port")
    return port


# name → (field, converter); a converter of None makes a switch.
_FLAGS: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    **dict.fromkeys(("a", "addr", "net"), ("host", str)),
    **dict.fromkeys(("p", "port"), ("port", _port)),
    **dict.fromkeys(("n", "name", "server_name"), ("server_name", str)),
    **dict.fromkeys(("P", "pid"), ("pid_file", Path)),
    **dict.fromkeys(("m", "http_port"), ("monitor_port", _port)),
    "ports_file_dir": ("ports_file_dir", Path),
    **dict.fromkeys(("ready-file", "ready_file"), ("ready_file", Path)),
    **dict.fromkeys(("end-with-stdin", "end_with_stdin"), ("end_with_stdin", None)),
    **dict.fromkeys(("js", "jetstream"), ("jetstream", None)),
    **dict.fromkeys(("sd", "store_dir"), ("store_dir", Path)),
    "user": ("user", str),
    "pass": ("password", str),
    "auth": ("token", str),
    **dict.fromkeys(("D", "debug"), ("debug", None)),
    **dict.fromkeys(("V", "VV", "trace"), ("trace", None)),
    **dict.fromkeys(("DV", "DVV"), ("debug", None)),
    **dict.fromkeys(("l", "log"), ("log_file", Path)),
    **dict.fromkeys(("T", "logtime"), ("logtime", None)),
    **dict.fromkeys(("c", "config"), ("config", str)),
    **dict.fromkeys(("h", "help"), ("help", None)),
    **dict.fromkeys(("v", "version"), ("version", None)),
}
_TRUTH = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The flags given, by field; one or two dashes, a value after a space or an equals sign."""
    found: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("-") or word.strip("-") == "":
            raise UsageError(f"unexpected argument {word!r}")
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name not in _FLAGS:
            raise UsageError(f"unknown flag {word!r}")
        field, convert = _FLAGS[name]
        if convert is None:
            if equals and value.lower() not in _TRUTH:
                raise UsageError(f"{word!r}: the value is neither true nor false")
            found[field] = _TRUTH[value.lower()] if equals else True
            continue
        if not equals:
            value = next(words, "")
        if not value:
            raise UsageError(f"flag {word!r} needs a value")
        found[field] = convert(value)
    return found


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    try:
        given = parse(argv)
        _check(given)
    except UsageError as error:
        print(f"millstream broker: {error}", file=sys.stderr)
        return USAGE_ERROR
    if given.pop("help", False):
        print(HELP, end="")
        return 0
    if given.pop("version", False):
        from .server.options import VERSION  # noqa: PLC0415 - see the module's first paragraph

        print(f"millstream broker: v{VERSION}")
        return 0
    from .server.run import run  # noqa: PLC0415 - see the module's first paragraph

    return run(given)


def _check(given: Mapping[str, Any]) -> None:
    if "config" in given:
        raise UsageError("configuration files are not supported yet")
    if "password" in given and "user" not in given:
        raise UsageError("--pass needs --user")
    if any(str(given.get(key, "")).startswith("$2") for key in ("password", "token")):
        raise UsageError("bcrypt passwords and tokens are not supported yet")
    if "user" in given and "token" in given:
        raise UsageError("--user and --auth exclude each other")
