"""The estimate of a run as data and as text: bytes per rank, bytes sent per step, steps per epoch."""

from dataclasses import dataclass

from longplay.common.sizes import gib, mib, readable_size

_RUNTIME_BYTES = {"cpu": 450 << 20, "cuda": 1 << 30}  # interpreter and libraries; assumed for CUDA
ALLOCATOR = "allocator's reserve"


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The estimate for the rank that needs the most memory.

    Attributes:
        persistent: name -> bytes allocated during the whole run.
        transient: name -> bytes allocated at the peak of a step.
        host: name -> bytes of host memory; on a CPU the limit covers them too.
        wire: name -> bytes that a rank sends per step.
        limit_bytes: memory that one rank may use; None if it is unknown.
        limit_source: where the limit comes from, for messages: "as given".
        steps_per_epoch, targets_per_epoch: numbers of the first epoch.
        slots: slots of one micro-batch.
    """

    recipe: str
    world_size: int
    device_type: str
    persistent: dict[str, int]
    transient: dict[str, int]
    host: dict[str, int]
    wire: dict[str, int]
    steps_per_epoch: int
    targets_per_epoch: int
    slots: int
    limit_bytes: int | None = None
    limit_source: str = ""

    @property
    def step_bytes(self) -> int:
        """Bytes that PyTorch allocates at its peak: tables, optimizer states, weights and activations."""
        return sum(self.persistent.values()) + sum(self.transient.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of a rank that the limit covers, libraries included."""
        host = sum(self.host.values()) if self.device_type == "cpu" else 0
        return self.step_bytes + host + _RUNTIME_BYTES[self.device_type]

    def fits(self, tolerance: float = 1.0) -> bool:
        """Return whether the total is at most `tolerance` times the limit; True without a limit."""
        return self.limit_bytes is None or self.total_bytes <= tolerance * self.limit_bytes

    def line(self) -> str:
        """Return the estimate as one line."""
        limit = "" if self.limit_bytes is None else f" of {gib(self.limit_bytes)} ({self.limit_source})"
        parts = {"table": 0, "encoder": 0, "activations": 0, "loss": 0}
        for name, size in (self.persistent | self.transient).items():
            part = name.split()[0].rstrip(",")
            parts[part] = parts.get(part, 0) + size
        parts["data and allocator"] = sum(self.host.values()) if self.device_type == "cpu" else 0
        parts["libraries"] = _RUNTIME_BYTES[self.device_type]
        shown = ", ".join(f"{name} {readable_size(size)}" for name, size in parts.items() if size)
        return f"memory   about {gib(self.total_bytes)} per rank{limit}: {shown}"

    def table(self) -> str:
        """Return the estimate as a table."""
        lines = [f"per rank, {self.world_size} on {self.device_type}, micro-batches of {self.slots:,} slots"]
        groups = {
            "during the whole run": self.persistent,
            "at the peak of a step": self.transient,
            "in host memory": self.host,
        }
        for group, entries in groups.items():
            lines.append(f"{group}:")
            lines += [f"  {name:<38}{mib(size):>16}" for name, size in entries.items() if size]
        lines.append(f"  {'interpreter and libraries':<38}{mib(_RUNTIME_BYTES[self.device_type]):>16}")
        limit = "" if self.limit_bytes is None else f"  of {gib(self.limit_bytes)}, {self.limit_source}"
        lines.append(f"{'total':<40}{mib(self.total_bytes):>16}{limit}")
        if self.wire:
            lines.append("sent per step:")
            lines += [f"  {name:<38}{mib(size):>16}" for name, size in self.wire.items()]
        lines.append(f"an epoch: {self.steps_per_epoch:,} steps, {self.targets_per_epoch:,} targets")
        return "\n".join(lines)
