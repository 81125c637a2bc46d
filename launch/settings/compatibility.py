"""Former names of settings, which commands, YAML files and run folders may still use."""

import functools
import os
import sys
from typing import Any

from longplay.distributed.runtime.launchers import is_other_rank

RENAMED = {
    "encoder.scan": "encoder.scan_backend",
    "data.workers": "data.reader_threads",
    "engine.accumulation": "engine.gradient_accumulation_steps",
    "engine.clip_norm": "engine.max_grad_norm",
}


def current_name(name: str) -> str:
    """Return the current name of the setting `name`; print one line on stderr if it was renamed."""
    if name not in RENAMED:
        return name
    _report(name)
    return RENAMED[name]


def rename_in_place(nested: dict[str, Any]) -> None:
    """Replace former names by current ones in the settings of a run folder or a YAML file."""
    for old in RENAMED:
        section, _, name = old.partition(".")
        part = nested.get(section)
        if isinstance(part, dict) and name in part:
            part[current_name(old).partition(".")[2]] = part.pop(name)


@functools.cache  # once per process
def _report(name: str) -> None:
    if not is_other_rank(os.environ):
        print(f"longplay: --{name} is now called --{RENAMED[name]}", file=sys.stderr)
