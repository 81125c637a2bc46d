"""Edits of Longplay's JSON files that leave their checksums right."""

import json
from pathlib import Path
from typing import Any

from longplay.common.json_files import JsonObject, read_json, sealed


def edit_json(path: Path, **changes: Any) -> None:
    """Set entries of a JSON object in a file, and the checksum of the whole."""
    path.write_text(json.dumps(sealed({**read_json(path, JsonObject), **changes})))
