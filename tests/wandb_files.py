"""Reads what an offline run of W&B left: the records that `wandb sync` uploads."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, MetricRecord, Record, RunRecord

_BLOCK = 32_768
_FILE_HEADER, _CHUNK_HEADER = 7, 7
_WHOLE, _LAST = 1, 4  # kinds of chunks that end a record


@dataclass
class OfflineRun:
    """An offline run.

    Attributes:
        folder: `offline-run-...`.
        run: what W&B is told first: project, name.
        definitions: how metrics are shown and summed up, by name or pattern.
        config: the configuration.
        history: one object a call of log.
        summary: the figures that stand for the run in lists.
        artifacts: what is uploaded as artifacts.
        exit_code: None for a run that has not ended.
    """

    folder: Path
    run: RunRecord = field(default_factory=RunRecord)
    definitions: dict[str, MetricRecord] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[ArtifactRecord] = field(default_factory=list)
    exit_code: int | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> "OfflineRun":
        """The only offline run in the folder of a run."""
        (offline,) = (folder / "wandb").glob("offline-run-*")
        (path,) = offline.glob("run-*.wandb")
        run = cls(offline)
        for record in _records(path.read_bytes()):
            run._take(record)
        return run

    @property
    def media(self) -> Path:
        """The folder that paths of tables are relative to."""
        return self.folder / "files"

    def _take(self, record: Record) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
        elif kind == "metric":
            self.definitions[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "config":
            _update(self.config, record.config.update)
        elif kind == "history":
            self.history.append(_update({}, record.history.item))
        elif kind == "summary":
            _update(self.summary, record.summary.update)
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "exit":
            self.exit_code = record.exit.exit_code


def _records(content: bytes) -> Iterator[Record]:
    """The records of a file: chunks in blocks, as in LevelDB's log."""
    place, parts = _FILE_HEADER, b""
    while place + _CHUNK_HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK_HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        place += _CHUNK_HEADER
        parts += content[place : place + size]
        place += size
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(parts)
            parts = b""


def _update(values: dict[str, Any], items: Any) -> dict[str, Any]:
    """Set each item at its path."""
    for item in items:
        *groups, last = item.nested_key or [item.key]
        place = values
        for group in groups:
            if not isinstance(place.get(group), dict):
                place[group] = {}
            place = place[group]
        place[last] = json.loads(item.value_json)
    return values
