"""The gdb server: a client's whole session packet by packet, hostile clients, several at once, and what is left when they are gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import avmm
from avmm.control.description import DescriptionError, parse
from avmm.debug.packets import PACKET_LIMIT, encode
from tests.debug.client import Client, connected, wait_for
from tests.debug.machines import COUNT, LOAD, label, machine

pytestmark = pytest.mark.asyncio
AGAIN, COUNTED, PRINT, NEXT = (label(name) for name in ("again", "counted", "print", "next"))


async def at_again(client: Client) -> None:
    """Go on to the first instruction of the loop."""
    assert await client.ask(f"Z0,{AGAIN:x},1") == "OK"
    assert await client.ask("c") == "T05thread:1;"
    assert await client.ask(f"z0,{AGAIN:x},1") == "OK"


async def test_a_session(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        assert "QStartNoAckMode+" in await client.ask("qSupported:swbreak+;xmlRegisters=i386")
        assert await client.ask("QStartNoAckMode") == "OK"
        assert await client.ask("vMustReplyEmpty") == ""
        assert await client.ask("?") == "T02thread:1;"
        assert [await client.ask(p) for p in ("qC", "qfThreadInfo", "qsThreadInfo", "qAttached", "H g0")] == ["QC1", "m1", "l", "1", "OK"]
        assert "i8086" in await client.ask("qXfer:features:read:target.xml:0,200")
        registers = await client.registers()
        assert (registers["eip"], registers["cs"], registers["cr0"] & 1) == (0xFFFF0, 0xF000, 0)
        assert await client.ask(f"Z0,{LOAD:x},1") == "OK"
        assert await client.ask("vCont;c") == "T05thread:1;swbreak:;"
        assert (await client.registers())["eip"] == LOAD
        assert await client.ask("vCont;s:1;c") == "T05thread:1;"
        assert (await client.registers())["eip"] == LOAD + 2
        await client.ask(f"z0,{LOAD:x},1")
        assert await client.ask(f"vCont;r{LOAD:x},{NEXT:x}") == "T05thread:1;"
        registers = await client.registers()
        assert (registers["eip"], registers["cs"], registers["esp"]) == (NEXT, 0x07C0, 0x7C00)
        assert vm.state is avmm.RunState.PAUSED
        assert await client.ask("D") == "OK"
        await wait_for(lambda: vm.state is avmm.RunState.RUNNING)


async def test_registers_are_written(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        await at_again(client)
        before = await client.registers()
        assert await client.ask("P3=" + (0x11223344).to_bytes(4, "little").hex()) == "OK"  # EBX
        assert await client.ask("P8=" + COUNTED.to_bytes(4, "little").hex()) == "OK"  # EIP, a linear address
        after = await client.registers()
        assert {name: value for name, value in after.items() if before[name] != value} == {"ebx": 0x11223344, "eip": COUNTED}
        assert vm.partition.processor.register("rip") == COUNTED - 0x7C00
        whole = await client.ask("g")
        assert await client.ask("G" + whole) == "OK"
        assert await client.ask("g") == whole
        assert await client.ask("P22=" + "f0" * 16) == "OK"
        assert await client.ask("p22") == "f0" * 16
        assert (await client.ask("P3=11"))[:2] == "E."
        assert await client.ask("p99") == "E22"
        assert await client.ask("Gzz") == "E22"


async def test_memory_is_read_and_written(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        await at_again(client)
        assert await client.ask(f"m{LOAD + 510:x},2") == "55aa"
        assert await client.ask(f"M{COUNT:x},2:3412") == "OK"
        assert await client.ask(f"m{COUNT:x},2") == "3412"
        assert await client.ask(b"X%x,3:a#}" % COUNT) == "OK"
        assert await client.ask(f"m{COUNT:x},3") == b"a#}".hex()
        assert await client.ask(f"X{COUNT:x},0:") == "OK"
        assert bytes.fromhex(await client.ask("mb8000,2"))[1] == 7  # text memory is RAM to the processor: a blank, grey on black
        assert await client.ask("m1ffffe,4") == "0000"  # as far as RAM goes
        assert await client.ask("mfec00000,4") == "E14"  # a device is not touched
        assert (await client.ask("M1ffffe,4:00000000"))[:2] == "E."
        assert await client.ask(f"m{COUNT:x},zz") == "E22"
        assert await client.ask("m-10,4") == "E22"
        assert await client.ask("qqemu.PhyMemMode") == "0"
        assert await client.ask("Qqemu.PhyMemMode:1") == "OK"
        assert await client.ask(f"m{LOAD + 510:x},2") == "55aa"


async def test_watchpoints(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        await at_again(client)
        assert await client.ask(f"Z2,{COUNT:x},2") == "OK"
        assert await client.ask("c") == f"T05thread:1;watch:{COUNT:x};"
        assert (await client.registers())["eip"] == COUNTED
        assert await client.ask(f"z2,{COUNT:x},2") == "OK"
        assert await client.ask(f"Z4,{COUNT:x},2") == "OK"
        assert await client.ask("c") == f"T05thread:1;awatch:{COUNT:x};"
        for n in range(7):
            assert await client.ask(f"Z3,{COUNT + 16 * n:x},2") == "OK"
        assert "at most 8" in await client.ask(f"Z3,{COUNT + 256:x},2")
        assert await client.ask("Z5,0,1") == ""
        assert vm.debugger.stopped


async def test_a_running_machine_is_interrupted(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb_wait=False, clock="real") as vm, connected(vm) as client:
        assert await client.ask("?") == "T02thread:1;"
        client.send(b"$c#63")
        await wait_for(lambda: vm.state is avmm.RunState.RUNNING)
        client.send(b"\x03")
        assert await client.receive() == b"T02thread:1;"
        before = vm.now
        await asyncio.sleep(0.01)
        assert vm.now == before  # machine time stands still


async def test_the_monitor_answers(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        assert await client.ask("qRcmd," + b"info status".hex()) == "OK"
        assert client.console == "VM status: paused\n"
        await client.ask("qRcmd," + b"nonsense".hex())
        assert "unknown command: 'nonsense'" in client.console
        assert vm.stats.resets == 0
        await client.ask("qRcmd," + b"system_reset".hex())
        await at_again(client)
        assert vm.stats.resets == 1


async def test_kill_ends_the_machine(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        client.send(b"$k#6b")
        await wait_for(lambda: vm.state is avmm.RunState.OFF)
        assert vm.partition.off_reason == "killed by gdb"
    async with machine(tmp_path) as vm, connected(vm) as client:
        assert await client.ask("vKill;1") == "OK"
        await wait_for(lambda: vm.state is avmm.RunState.OFF)


async def test_the_end_of_the_machine_is_told(tmp_path: Path) -> None:
    async with machine(tmp_path, "  lidt [none]\n  int3\nnone: dw 0, 0, 0\n", on_triple_fault="stop") as vm, connected(vm) as client:
        await client.ask("?")
        assert await client.ask("c") in ("W00", "T05thread:1;")
        await vm.partition.stop()


# -- the guest goes on


async def test_a_client_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        async with connected(vm) as client:
            await at_again(client)
            await client.ask(f"Z0,{AGAIN:x},1")
            await client.ask(f"Z2,{COUNT:x},2")
            client.writer.transport.abort()
        await wait_for(lambda: vm.state is avmm.RunState.RUNNING and not vm.gdb_servers[0].connected)
        assert vm.debugger.points == {}
        before = vm.now
        await vm.sleep(0.01)
        assert vm.now > before
        async with connected(vm) as client:  # and another may come
            assert await client.ask("?") == "T02thread:1;"
            client.send(b"$vCont;s#b8")  # gone with a step on its way
        await wait_for(lambda: vm.state is avmm.RunState.RUNNING and not vm.gdb_servers[0].connected)
        await vm.sleep(0.01)


async def test_one_gdb_at_a_time(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as first:
        await first.ask("?")
        async with connected(vm) as second:
            assert "another gdb" in await second.ask("qSupported")
            with pytest.raises(EOFError):
                await second.receive()
        assert await first.ask("qC") == "QC1"


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 5000, b"$" * 3000, b"$" + b"A" * (3 * PACKET_LIMIT) + b"#00", b"$m0,ffffffffffffffff#00", b"+-+-\x03\x03\x03", b"$g#00" * 50],
    ids=("noise", "dollars", "giant", "huge-read", "marks", "bad-sums"),
)
async def test_garbage_does_no_harm(tmp_path: Path, data: bytes) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        client.send(data)
        assert await client.ask("?") == "T02thread:1;"
        assert await client.ask("qC") == "QC1"
        assert vm.debugger.stopped


async def test_each_packet_with_nonsense_in_it_is_refused(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        await client.ask("?")
        for packet in ("m", "M0", "X1", "Z0", "Z0,,", "z1,1", "P", "P=", "p", "Gx", "vCont;", "vCont;r1", "T99", "qXfer:features:read:x:0,1",
                       "qXfer:features:read:target.xml:", "Qqemu.sstep:zz", "qRcmd,zz", "Zffff,1,1", "m0,99999999999999999999", "\x00", "é"):  # fmt: skip
            assert (await client.ask(packet))[:1] in ("E", "") or packet == "m0,99999999999999999999", packet
        assert (await client.ask(f"m0,{1 << 40:x}")) != ""
        assert vm.debugger.stopped
        assert vm.debugger.points == {}


async def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        server = vm.gdb_servers[0]
        server.patience = 0.05
        async with connected(vm) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(encode(b"m0,7000") * 400)
            await wait_for(lambda: vm.state is avmm.RunState.RUNNING and not server.connected, turns=500_000)


async def test_a_machine_ends_with_a_gdb_connected(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb=f"unix:{tmp_path}/gdb") as vm, connected(vm) as client:
        assert await client.ask("?") == "T02thread:1;"
        assert (tmp_path / "gdb").stat().st_mode & 0o777 == 0o600
        await vm.shutdown()
        with pytest.raises(EOFError):
            await client.receive()
    assert not (tmp_path / "gdb").exists()


# -- configuration


async def test_addresses(tmp_path: Path) -> None:
    for wrong in ("nowhere", "unix:", "host:port", "1:99999", ":"):
        with pytest.raises(avmm.ConfigError, match="HOST:PORT, PORT or unix:PATH"):
            avmm.VmConfig(gdb=wrong)
    with pytest.raises(avmm.ConfigError, match="needs an address where one connects"):
        avmm.VmConfig(gdb_wait=True)
    async with machine(tmp_path) as vm:
        taken = vm.gdb_servers[0].address
        with pytest.raises(avmm.ConfigError, match=f"cannot listen for gdb at {taken}"):
            await vm.gdb_server(taken)


async def test_a_description_names_the_address() -> None:
    described = parse('[vm.try]\ngdb = "1234"\ngdb_wait = true\n', Path("machine.toml"))
    assert (described.vms[0].gdb, described.vms[0].gdb_wait) == ("1234", True)
    with pytest.raises(DescriptionError, match=r"line 2: cannot read 'x' as an address"):
        parse('[vm.try]\ngdb = "x"\n', Path("machine.toml"))
