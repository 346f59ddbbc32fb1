from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.ata import BusMaster
from avmm.devices.device import PortRange
from avmm.devices.pci import PciFunction, PciHost, host_bridge, ide_function, isa_bridge, pirq_route, power_management
from tests.devices.ata.host import disk_host
from tests.devices.bench import Bench

IDE, ISA, PM = 0x80000900, 0x80000800, 0x80000B00


class Machine(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.moves: list[int | None] = []
        self.ide = ide_function(lambda function, base: self.moves.append(base))
        self.isa = isa_bridge()
        self.pci = PciHost(self, [host_bridge(), self.isa, self.ide, power_management(0x600)])

    def config(self, address: int, size: int = 4) -> int:
        self.write(self.pci, 0xCF8, address & ~3, 4)
        return self.read(self.pci, 0xCFC + (address & 3), size)

    def set(self, address: int, value: int, size: int = 4) -> None:
        self.write(self.pci, 0xCF8, address & ~3, 4)
        self.write(self.pci, 0xCFC + (address & 3), value, size)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize(
    ("address", "ids", "class_code", "header"),
    [
        (0x80000000, 0x12378086, 0x060000, 0x00),
        (ISA, 0x70008086, 0x060100, 0x80),
        (IDE, 0x71118086, 0x010180, 0x00),
        (PM, 0x71138086, 0x068000, 0x00),
    ],
)
def test_functions(machine: Machine, address: int, ids: int, class_code: int, header: int) -> None:
    assert machine.config(address) == ids
    assert machine.config(address + 8) >> 8 == class_code
    assert machine.config(address + 0x0E, 1) == header
    machine.set(address, 0)
    assert machine.config(address) == ids
    assert machine.config(address + 2, 2) == ids >> 16
    assert machine.config(address + 1, 1) == 0x80
    assert machine.config(address + 1, 2) == ids >> 8 & 0xFFFF


@pytest.mark.parametrize("address", [0x80000A00, 0x80001000, 0x80010000, 0x00000000, 0x00000900])
def test_nobody_there(machine: Machine, address: int) -> None:
    assert machine.config(address) == 0xFFFFFFFF
    machine.set(address, 0)
    assert machine.config(address + 3, 1) == 0xFF


def test_address_register(machine: Machine) -> None:
    machine.write(machine.pci, 0xCF8, 0xFFFFFFFF, 4)
    assert machine.read(machine.pci, 0xCF8, 4) == 0x80FFFFFC
    machine.write(machine.pci, 0xCF8, 0x12, 1)  # only dwords reach it
    machine.write(machine.pci, 0xCF8, 0x1234, 2)
    assert machine.read(machine.pci, 0xCF8, 4) == 0x80FFFFFC


def test_access_across_the_data_register(machine: Machine) -> None:
    machine.write(machine.pci, 0xCF8, IDE, 4)
    assert machine.read(machine.pci, 0xCFE, 4) == 0xFFFF7111
    machine.write(machine.pci, 0xCF8, 0x800009FC, 4)
    assert machine.read(machine.pci, 0xCFF, 4) == 0xFFFFFF00


def test_bar_sizing_and_mapping(machine: Machine) -> None:
    assert machine.config(IDE + 0x20) == 0x00000001
    machine.set(IDE + 0x20, 0xFFFFFFFF)
    assert machine.config(IDE + 0x20) == 0xFFFFFFF1  # 16 ports
    machine.set(IDE + 0x20, 0xC007)
    assert machine.config(IDE + 0x20) == 0xC001
    assert machine.moves == []
    machine.set(IDE + 4, 0x0005, 2)
    assert machine.moves == [0xC000]
    machine.set(IDE + 0x21, 0xD0, 1)
    machine.set(IDE + 0x20, 0xFFFFFFFF)  # sizing while enabled
    machine.set(IDE + 0x20, 0xD000)
    machine.set(IDE + 4, 0x0004, 2)
    assert machine.moves == [0xC000, 0xD000, None, 0xD000, None]
    machine.set(IDE + 4, 0xFFFF, 2)
    assert machine.config(IDE + 4, 2) == 0x0005
    machine.pci.reset()
    assert machine.moves[-2:] == [0xD000, None]
    assert machine.config(IDE + 0x20) == 0x00000001


def test_bus_master_follows() -> None:
    host, _ = disk_host()
    bus_master: BusMaster = host.dma
    function = ide_function(lambda _, base: bus_master.move(base))
    pci = PciHost(host, [function])
    for address, value in ((IDE + 0x20, 0xB000), (IDE + 4, 0x05)):
        host.write(pci, 0xCF8, address, 4)
        host.write(pci, 0xCFC, value, 4)
    assert bus_master.ports == (PortRange(0xB000, 16, 4),)
    host.write(bus_master, 0xB004, 0x1000, 4)
    assert host.read(bus_master, 0xB004, 4) == 0x1000


def test_ide_timing_is_stored(machine: Machine) -> None:
    assert machine.config(IDE + 0x40) == 0x80008000
    machine.set(IDE + 0x42, 0xA307, 2)
    assert machine.config(IDE + 0x40) == 0xA3078000


def test_pirq_routing(machine: Machine) -> None:
    assert [pirq_route(machine.isa, pirq) for pirq in range(4)] == [None] * 4
    machine.set(ISA + 0x60, 0x0B0A8509)
    assert [pirq_route(machine.isa, pirq) for pirq in range(4)] == [9, None, 10, 11]
    machine.set(ISA + 0x61, 0xFF, 1)
    assert machine.config(ISA + 0x61, 1) == 0x8F  # bits 4-6 are reserved


def test_power_management_ports_are_fixed(machine: Machine) -> None:
    machine.set(PM + 0x40, 0xFFFFFFFF)
    assert machine.config(PM + 0x40) == 0x601
    machine.set(PM + 0x80, 1, 1)
    assert machine.config(PM + 0x80, 1) == 1
    assert machine.config(PM + 0x3C, 2) == 0x0109


def test_on_write_hears_pam(machine: Machine) -> None:
    heard: list[tuple[str, int, int]] = []
    bridge = machine.pci.functions[0]
    bridge.on_write = lambda function, offset, size: heard.append((function.name, offset, function.config[offset]))
    machine.set(0x80000059, 0x30, 1)
    assert heard == [("i440fx", 0x59, 0x30)]


def test_write_one_to_clear() -> None:
    function = ide_function()
    function.config[7] = 0x3A
    function.write(6, 2, 0x1000)
    assert function.config[7] == 0x2A


def test_reset_control(machine: Machine) -> None:
    machine.write(machine.pci, 0xCF9, 0x02)
    assert machine.requests == []
    machine.write(machine.pci, 0xCF9, 0x06)
    machine.write(machine.pci, 0xCF9, 0x06)  # only the edge
    assert machine.requests == ["reset: port CF9h, hard"]
    assert machine.read(machine.pci, 0xCF9) == 0x06
    machine.write(machine.pci, 0xCF9, 0x00)
    machine.write(machine.pci, 0xCF9, 0x04)
    assert machine.requests[1:] == ["reset: port CF9h, soft"]


def test_two_functions_in_one_place() -> None:
    with pytest.raises(ValueError, match="place of its own"):
        PciHost(Bench(), [isa_bridge(), PciFunction("other", 1, 0, (1, 2), 0)])


ACCESSES = st.lists(
    st.tuples(st.integers(0xCF8, 0xCFF), st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 0xFFFFFFFF)), max_size=60
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(ACCESSES, st.sampled_from([0x80000000, ISA, IDE, PM]))
def test_any_traffic_and_restore(accesses: list[tuple[int, int, bool, int]], function: int) -> None:
    machine = Machine()
    for port, size, writing, value in accesses:
        if writing:
            machine.write(machine.pci, 0xCF8, function | value & 0xFC, 4)
            machine.write(machine.pci, port, value & (1 << 8 * size) - 1, size)
        else:
            machine.read(machine.pci, port, size)
    state = machine.pci.save()
    other = Machine()
    other.pci.restore(state)
    assert other.pci.save() == state
    assert other.ide.base == machine.ide.base
    assert other.moves == ([] if other.ide.base is None else [other.ide.base])


def test_restore_checks_the_functions(machine: Machine) -> None:
    with pytest.raises(ValueError, match="other PCI functions"):
        PciHost(Bench(), [isa_bridge()]).restore(machine.pci.save())
