"""Real gdb on real software: a boot sector in real mode, and Debian's Linux kernel with the symbols it tells of itself."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import avmm
from avmm.debug.symbols import SymbolsError, elf
from tests import third_party
from tests.debug.machines import COUNT, LOAD, label, machine
from tests.vm.linux import Boot, Shell

pytestmark = pytest.mark.guests
PATIENCE = 120  # s of the host's time, far more than a session takes


async def gdb(vm: avmm.Vm, *commands: str, symbols: Path | None = None, interrupt: Callable[[], bool] | None = None) -> str:
    """Run gdb with these commands on a machine and return what it printed. It is sent a Ctrl-C as soon as ``interrupt()``."""
    remote = f"target remote {vm.gdb_servers[0].address}"
    words = [third_party.tool("gdb"), "-nx", "-batch", *(["-ex", f"file {symbols}"] if symbols else [])]
    for command in ("set pagination off", "set osabi none", remote, *commands):
        words += ["-ex", command]
    running = await asyncio.create_subprocess_exec(
        *words, env=third_party.tool_environment(), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while interrupt is not None and not interrupt():
                await asyncio.sleep(0)
            if interrupt is not None:
                running.send_signal(signal.SIGINT)
            output, _ = await running.communicate()
    except TimeoutError:
        running.kill()
        output, _ = await running.communicate()
        pytest.fail(f"gdb did not end:\n{output.decode()}")
    return output.decode()


def in_order(said: str, *lines: str) -> list[re.Match[str]]:
    """Find patterns in what gdb said, one behind the other."""
    matches = []
    for line in lines:
        found = re.search(line, said)
        assert found, f"{line} is not in\n{said}"
        said = said[found.end() :]
        matches.append(found)
    return matches


@pytest.mark.asyncio
@pytest.mark.parametrize("threads", [1, 2])
async def test_a_real_mode_boot_sector(tmp_path: Path, threads: int) -> None:
    async with machine(tmp_path, threads=threads) as vm:
        said = await gdb(
            vm, "x/i $pc", f"break *{LOAD:#x}", "continue", "x/2i $pc", "stepi 5", "info registers eip cs sp", "delete",
            f"watch *(short *){COUNT:#x}", "continue", "continue", "print $cx", "delete", f"tbreak *{label('print'):#x}", "continue",
            "set var $eax = 0x0e42", f"tbreak *{label('counted'):#x}", "continue", "find /b 0xb8000, +4000, 0x42", f"x/2xb {LOAD + 510:#x}", "monitor info status", "detach",
        )  # fmt: skip
        in_order(
            said,
            r"=> 0xffff0:\s+ljmp\s+\$0xf000,\$0xe05b",
            r"Breakpoint 1, 0x00007c00 in",
            r"=> 0x7c00:\s+xor\s+%ax,%ax",
            rf"eip\s+{label('next'):#x}",
            r"cs\s+0x7c0",
            r"sp\s+0x7c00",
            r"Hardware watchpoint 2: .*\n\nOld value = 0\nNew value = 1",
            r"Old value = 1\nNew value = 2",
            r"\$1 = 2",
            r"Temporary breakpoint 3, ",
            r"1 pattern found",  # the B that gdb put into AX is on the screen
            r"0x7dfe:\s+0x55\s+0xaa",
            r"VM status: paused",
            r"\[Inferior 1 \(Remote target\) detached\]",
        )
        assert vm.state is avmm.RunState.RUNNING
        assert vm.debugger.points == {}


@pytest.mark.asyncio
async def test_a_boot_sector_backwards(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb_reverse=True) as vm:
        said = await gdb(
            vm, f"break *{label('again'):#x}", "continue", "continue", "continue", "print $cx", "stepi 7", "reverse-stepi 7", "print $pc",
            "reverse-continue", "print $cx", "delete", f"watch *(short *){COUNT:#x}", "reverse-continue", "print $pc",
            "reverse-continue", "info registers eip", "continue", "detach",
        )  # fmt: skip
        in_order(
            said,
            r"\$1 = 1",
            rf"\$2 = .*{label('again'):#x}",
            r"Breakpoint 1, ",
            r"\$3 = 2",
            r"New value = 0",  # before the instruction that counted first
            r"\$4 = .*0x7c16",
            r"No more reverse-execution history",
            r"eip\s+0xffff0",
            r"Hardware watchpoint 2: .*\n\nOld value = 0\nNew value = 1",
        )


@pytest.mark.asyncio
async def test_ctrl_c_ends_a_search_backwards(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        history = await vm.keep_history(0.002)
        await vm.resume()
        await vm.wait_until(lambda: len(history.moments) > 4)
        await vm.pause()
        last, before = history.moments[-1].units, history.moments[-2].units

        def in_the_middle() -> bool:
            return vm.reverse._searching and before < vm.partition.processor.units < last

        said = await gdb(vm, "watch *(short *) 0x9000", "reverse-continue", "monitor info status", "detach", interrupt=in_the_middle)
        in_order(said, r"Program received signal SIGINT", r"VM status: paused", r"Remote target\) detached")
        assert vm.state is avmm.RunState.RUNNING


@pytest.mark.linux
@pytest.mark.asyncio
async def test_linux_with_symbols(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(Boot(tmp_path).config(gdb="127.0.0.1:0"))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        names = "__x64_sys_newuname|do_syscall_64|entry_SYSCALL_64|linux_banner|jiffies_64|__x64_sys_sysinfo|init_task"
        listed = await shell.run(f"grep -E ' ({names})$' /proc/kallsyms")
        symbols = tmp_path / "vmlinux.sym"
        symbols.write_bytes(elf(listed.splitlines()))
        await vm.pause()
        vm.serial.write("uname -s\n")
        said = await gdb(
            vm, "break __x64_sys_newuname", "continue", "info symbol $pc", "x/i $pc", "info registers cr0 efer cs gs_base", "x/s &linux_banner",
            "tbreak entry_SYSCALL_64", "continue", "stepi", "info symbol $pc", "print/x $rip - (long) &entry_SYSCALL_64",
            "watch *(long *) &jiffies_64", "continue", "detach", symbols=symbols,
        )  # fmt: skip
        matches = in_order(
            said,
            r"Breakpoint 1, 0x[0-9a-f]+ in __x64_sys_newuname \(\)",
            r"__x64_sys_newuname in section \.text",
            r"=> 0x[0-9a-f]+ <__x64_sys_newuname>:",
            r"cr0\s+0x80050033\s+\[ PE MP ET NE WP AM PG \]",
            r"efer\s+.*\[ SCE LME LMA NXE \]",
            r"cs\s+0x10",
            r"gs_base\s+0xffff[0-9a-f]{12}",
            r':\s+"Linux version 6\.',
            r"Temporary breakpoint 2, 0x[0-9a-f]+ in entry_SYSCALL_64 \(\)",
            r"entry_SYSCALL_64 \+ \d+ in section \.text",
            r"\$1 = 0x[1-9a-f]",
            r"Old value = (\d+)\nNew value = (\d+)",
        )
        assert int(matches[-1][2]) == int(matches[-1][1]) + 1
        await vm.serial.wait_for("Linux\r\n")
        assert await shell.run("echo still here") == "still here"


def test_a_list_of_symbols_that_is_none() -> None:
    with pytest.raises(SymbolsError, match="line 2 is not an address"):
        elf(["ffffffff81000000 T _text", "hello"])
    for address in ("11111111111111111", "-1"):
        with pytest.raises(SymbolsError, match=f"line 1 has an address that no processor has: {address}"):
            elf([f"{address} T x"])
    with pytest.raises(SymbolsError, match="kptr_restrict"):
        elf(["0000000000000000 T _text"])
