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
        package: dotted name of a package whose modules register the built-in entries. They are imported at
            the first lookup, so that the registry itself stays cheap to import.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
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
        entries = self._loaded()
        if name not in entries:
            raise UnknownNameError(f"{self.kind} {name!r}: {self.hint(name)}")
        return entries[name]

    def hint(self, name: str) -> str:
        """Return what a message says about the unknown `name`: the nearest name and all available ones."""
        entries = self._loaded()
        near = difflib.get_close_matches(name, entries, n=1)
        nearest = f"did you mean {near[0]}? " if near else ""
        return (
            f"unknown; {nearest}available: {', '.join(entries)}. "
            "An entry of your own module needs --import MODULE"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def _loaded(self) -> dict[str, Entry]:
        """Return the entries, built-in ones included."""
        package, self._package = self._package, None  # cleared first: the modules may look names up
        if package is not None:
            import_submodules(importlib.import_module(package))
        return self._entries


class UnknownNameError(ValueError, KeyError):
    """No entry of a registry has this name."""

    def __str__(self) -> str:
        return str(self.args[0])


def import_submodules(package: ModuleType) -> None:
    """Import every module of `package`, so that each can register its entries."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
