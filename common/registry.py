"""Registries: names that settings and commands refer to, each with the object that a module registered."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Objects of one kind by name, in the order in which they were registered.

    Args:
        kind: what the entries are, for messages: "encoder".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add `entry` under `name` and return it.

        Raises:
            ValueError: another entry has this name.
        """
        if self._entries.setdefault(name, entry) is not entry:
            raise ValueError(f"{self.kind} {name!r}: is already registered; choose another name")
        return entry

    def __getitem__(self, name: str) -> Entry:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: no entry has this name.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UnknownNameError(
                f"{self.kind} {name!r}: unknown; {hint}available: {', '.join(self._entries)}. "
                "An entry of your own module needs --import MODULE"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class UnknownNameError(ValueError, KeyError):
    """No entry of a registry has this name."""

    def __str__(self) -> str:
        return str(self.args[0])


def import_submodules(package: ModuleType) -> None:
    """Import every module of `package`, so that each can register its entries."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
