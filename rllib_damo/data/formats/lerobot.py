"""LeRobot's folders (version 3): Parquet of rows in `data/`, beside `meta/info.json`; videos are left alone."""

from __future__ import annotations

import dataclasses

from rllib_damo.data.formats.columns import without_given
from rllib_damo.data.formats.files import Place
from rllib_damo.data.formats.parquet import SUFFIXES, ParquetReader
from rllib_damo.data.formats.reader import Conventions, Format

# Where the user names nothing else. `next.done` is no termination: it marks the end of demonstrations, too.
_SCHEMA = {"obs": "observation.state", "actions": "action", "rewards": "next.reward", "eps_id": "episode_index"}


def _open(place: Place, conventions: Conventions) -> ParquetReader:
    given = conventions.input_read_schema
    schema = {**without_given(_SCHEMA, given), **given}
    files = Place(str(place.path / "data")).files(SUFFIXES, "Parquet")
    return ParquetReader(files, dataclasses.replace(conventions, input_read_schema=schema))


FORMAT = Format(
    "lerobot",
    "folders of LeRobot",
    _open,
    recognises=lambda place: place.is_folder and (place.path / "meta" / "info.json").is_file(),
)
