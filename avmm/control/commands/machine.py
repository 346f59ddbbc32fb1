"""QMP commands about a machine as a whole: its life, and what it is."""

from __future__ import annotations

from avmm.control.commands.command import Arg, Call, Table
from avmm.control.qmp import version
from avmm.hypervisor.partition import RunState

TABLE = Table()
STATUS = {
    RunState.CREATED: "prelaunch",
    RunState.RUNNING: "running",
    RunState.PAUSED: "paused",
    RunState.OFF: "shutdown",
    RunState.FAILED: "internal-error",
}
"""QMP's RunState for ours."""


@TABLE.command("query-version", machine=False)
async def _query_version(call: Call) -> object:
    return version()


@TABLE.command("query-commands", machine=False)
async def _query_commands(call: Call) -> object:
    return [{"name": name} for name in (*sorted(call.target.commands), "qmp_capabilities")]


@TABLE.command("query-name")
async def _query_name(call: Call) -> object:
    return {"name": call.vm.name}


@TABLE.command("query-status")
async def _query_status(call: Call) -> object:
    state = call.vm.state
    return {"status": STATUS[state], "running": state is RunState.RUNNING}


@TABLE.command("query-cpus-fast")
async def _query_cpus(call: Call) -> object:
    import threading

    place = {"socket-id": 0, "core-id": 0, "thread-id": 0}
    return [{"cpu-index": 0, "qom-path": "/machine/cpu[0]", "thread-id": threading.get_native_id(), "target": "x86_64", "props": place}]


@TABLE.command("query-kvm")
async def _query_kvm(call: Call) -> object:
    return {"enabled": False, "present": False}


@TABLE.command("query-memory-size-summary")
async def _query_memory(call: Call) -> object:
    return {"base-memory": call.vm.config.memory_bytes, "plugged-memory": 0}


@TABLE.command("stop")
async def _stop(call: Call) -> object:
    await call.running.pause()
    return {}


@TABLE.command("cont")
async def _cont(call: Call) -> object:
    vm = call.running
    if vm.state is RunState.CREATED:
        await vm.start()
    else:
        await vm.resume()
    return {}


@TABLE.command("system_reset")
async def _system_reset(call: Call) -> object:
    await call.running.reset()
    return {}


@TABLE.command("system_powerdown")
async def _system_powerdown(call: Call) -> object:
    await call.running.power_button()
    call.target.announce(call.vm, "POWERDOWN")
    return {}


@TABLE.command("quit", machine=False)
async def _quit(call: Call) -> object:
    await call.target.quit(call.chosen)
    return {}


@TABLE.command("human-monitor-command", command_line=Arg(str), cpu_index=Arg(int, 0))
async def _human_monitor_command(call: Call) -> object:
    from avmm.control.commands.monitor import run

    return await run(call, call["command-line"])
