"""Files that tell others where the server is: process id, ports, ready."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import StartError
from .options import ServerOptions


class PublishedFiles:
    """Written by rename when the server is ready, taken away when it ends."""

    def __init__(self) -> None:
        self._written: list[Path] = []

    def publish(self, options: ServerOptions, description: Mapping[str, object]) -> None:
        """Write the files the options ask for. Raises StartError naming the file."""
        pid = os.getpid()
        if options.pid_file is not None:
            # Digits only, no line end, as nats-server writes it.
            self._write(options.pid_file, str(pid))
        if options.ports_file_dir is not None:
            ports: dict[str, object] = {"nats": [description["url"]]}
            if "monitor_url" in description:
                ports["monitoring"] = [description["monitor_url"]]
            self._write(options.ports_file_dir / f"millstream_{pid}.ports", json.dumps(ports))
        if options.ready_file is not None:
            self._write(options.ready_file, json.dumps(description) + "\n")

    def _write(self, path: Path, text: str) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StartError(str(path), os.strerror(error.errno or 0)) from error
        self._written.append(path)

    def remove(self) -> None:
        """Take away what was written."""
        for path in self._written:
            path.unlink(missing_ok=True)
        self._written.clear()
