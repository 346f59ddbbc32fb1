"""What a machine did: exits by kind and port, where they were handled, and where the time went."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from avmm.hypervisor.partition import Partition


@dataclass(frozen=True, slots=True)
class PortStats:
    """Accesses of one port, or of one memory range by its first address."""

    address: int
    device: str
    inside: bool
    reads: int
    writes: int


@dataclass(frozen=True, slots=True)
class Stats:
    """A machine's counters at one moment. Times in ns of host time, ``machine_ns`` in machine time."""

    machine_ns: int
    exits: dict[str, int]
    """Exits by kind: in, out, load, store (memory-mapped), instruction (CPUID, MSR), interrupt."""
    inside: int
    """Accesses that a device model in the hypervisor handled."""
    outside: int
    """Accesses that went to the service OS as I/O request packets."""
    plain: int
    """Accesses to plain registers of devices outside, which take no packet."""
    direct: int
    """Accesses that went straight to a physical device: no exits, and in no other number here."""
    floating: int
    """Accesses that nobody answered."""
    windowed: int
    """Words moved through data windows, without an exit."""
    injected: int
    """Interrupts delivered to the guest."""
    exceptions: int
    """Exceptions and INT n that the guest took."""
    resets: int
    guest_ns: int
    """Executing guest code."""
    inside_ns: int
    """In device models and exit handling inside the hypervisor."""
    outside_ns: int
    """Suspended in the middle of an instruction, waiting for the service OS."""
    idle_ns: int
    """Halted."""
    slices: int
    longest_slice_ns: int
    ports: tuple[PortStats, ...]
    memory: tuple[PortStats, ...]

    def as_dict(self) -> dict[str, object]:
        """Return it all as JSON-ready types."""
        return asdict(self)

    def __str__(self) -> str:
        exits = "  ".join(f"{kind} {count}" for kind, count in self.exits.items() if count)
        busiest = sorted(self.ports + self.memory, key=lambda p: -(p.reads + p.writes))[:8]
        lines = [
            f"machine time {self.machine_ns / 1e9:.3f} s, {self.slices} slices, {self.resets} resets",
            f"exits: {exits or 'none'}",
            f"handled inside {self.inside}, sent outside {self.outside}, plain registers {self.plain}, floating {self.floating}, "
            f"words through windows {self.windowed}",
            f"interrupts injected {self.injected}, exceptions {self.exceptions}",
            f"host time: guest {self.guest_ns / 1e6:.1f} ms, inside {self.inside_ns / 1e6:.1f} ms, "
            f"outside {self.outside_ns / 1e6:.1f} ms, idle {self.idle_ns / 1e6:.1f} ms",
        ]
        lines += [
            f"  {p.address:#06x} {p.device:<10} {'inside' if p.inside else 'outside':<8} {p.reads} reads, {p.writes} writes"
            for p in busiest
        ]
        return "\n".join(lines)


def collect(partition: Partition) -> Stats:
    """Return the counters of a partition now."""
    counters: dict[str, int] = getattr(partition.processor, "counters", dict)()
    ports, memory = partition.ports.tallies(), partition.address_space.tallies()
    every = [*partition.ports.every(), *partition.address_space.every()]
    floating = [*partition.ports.floating.values(), partition.address_space.floating]
    direct_reads, direct_writes = partition.ports.direct()
    direct_loads, direct_stores = partition.address_space.direct()
    run_ns, cycles = counters.get("run_ns", 0), counters.get("run_cycles", 0)
    handlers = run_ns * counters.get("handler_cycles", 0) // cycles if cycles else 0
    outside_ns = partition.vcpu.outside_ns
    return Stats(
        machine_ns=partition.clock.now(),
        exits={
            "in": max(0, counters.get("in", 0) - direct_reads),
            "out": max(0, counters.get("out", 0) - direct_writes),
            "load": max(0, counters.get("loads", 0) - direct_loads),
            "store": max(0, counters.get("stores", 0) - direct_stores),
            "instruction": counters.get("exits", 0),
            "interrupt": counters.get("interrupts", 0),
        },
        inside=sum(t.reads + t.writes for t in every if t.inside and not t.direct),
        direct=direct_reads + direct_writes + direct_loads + direct_stores,
        outside=partition.irps,
        plain=partition.ports.plain,
        floating=sum(t.reads + t.writes for t in floating),
        windowed=counters.get("window", 0),
        injected=partition.vcpu.injected,
        exceptions=counters.get("exceptions", 0),
        resets=partition.resets,
        guest_ns=max(0, run_ns - handlers),
        inside_ns=max(0, handlers - outside_ns),
        outside_ns=outside_ns,
        idle_ns=partition.vcpu.idle_ns,
        slices=partition.vcpu.slices,
        longest_slice_ns=partition.vcpu.longest_slice,
        ports=tuple(
            PortStats(p, t.device, t.inside, t.reads, t.writes) for p, t in sorted(ports.items()) if not t.direct and (t.reads or t.writes)
        ),
        memory=tuple(
            PortStats(a, t.device, t.inside, t.reads, t.writes) for a, t in sorted(memory.items()) if not t.direct and (t.reads or t.writes)
        ),
    )
