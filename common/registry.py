"""Registries map the names used in settings and commands to the objects that modules register."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Map names to objects of one kind, in registration order.

    Args:
        kind: the kind of object, for error messages, for example "encoder".
        package: dotted name of the package whose modules register the built-in entries. They are imported
            at the first lookup, which keeps the registry itself cheap to import.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add `entry` under `name` and return it.

        Raises:
            ValueError: the name is already registered for another object.
        """
        if self._entries.setdefault(name, entry) is not entry:
            raise ValueError(f"{self.kind} {name!r}: already registered; choose another name")
        return entry

    def __getitem__(self, name: str) -> Entry:
        """Return the entry registered as `name`.

        Raises:
            UnknownNameError: `name` is not registered.
        """
        entries = self._loaded()
        if name not in entries:
            raise UnknownNameError(f"{self.kind} {name!r}: {self.hint(name)}")
        return entries[name]

    def hint(self, name: str) -> str:
        """Return the end of an error message for the unknown `name`: the closest match and all names."""
        entries = self._loaded()
        near = difflib.get_close_matches(name, entries, n=1)
        nearest = f"did you mean {near[0]}? " if near else ""
        return (
            f"unknown; {nearest}available: {', '.join(entries)}. "
            "To use one from your own module, add --import MODULE"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def _loaded(self) -> dict[str, Entry]:
        """Return the entries, after importing the built-in ones."""
        package = self._package
        self._package = None  # cleared first, because the imported modules may look up names
        if package is not None:
            import_submodules(importlib.import_module(package))
        return self._entries


class UnknownNameError(ValueError, KeyError):
    """A name is not in a registry."""

    def __str__(self) -> str:
        return str(self.args[0])


def import_submodules(package: ModuleType) -> None:
    """Import every module of `package`, so that each can register its entries."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
