"""A Griffe extension: accept a docstring section, such as `Raises:`, without a blank line before it."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<=[^\n])\n( *)(Args|Attributes|Raises|Returns|Yields):\n")


class DocstringSections(griffe.Extension):
    """Insert the blank line that Griffe's parser needs."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(r"\n\n\1\2:\n", obj.docstring.value)
