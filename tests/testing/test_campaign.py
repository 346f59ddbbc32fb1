"""Campaigns: nothing is lost whatever happens to workers, results are the same each time, reports say what happened."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import uvloop

from avmm import ConfigError
from avmm.testing.campaign.campaign import ATTEMPTS, Campaign
from avmm.testing.campaign.matrix import Instance, Scenario, instances, parse
from avmm.testing.campaign.processes import InstanceTimeout, Processes, WorkerLost, WorkerProcess, collect
from avmm.testing.campaign.reports import as_json, as_junit, summary
from avmm_console import cli

PASSED = {"outcome": "passed", "message": "", "report": "", "machine_seconds": 1.0, "host_seconds": 0.1}


def many(count: int) -> list[Instance]:
    return instances([Scenario("s.py::test_it")], parse([f"seeds=1..{count}"]))


class FakePool:
    """Workers that do what a script says about an instance's number and attempt."""

    def __init__(self, slots: int, script: dict[tuple[int, int], Exception | str]) -> None:
        self.slots = slots
        self.script = script
        self.asked: list[int] = []
        self.most = self.now = 0

    async def run(self, slot: int, instance: Instance) -> dict[str, Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        self.asked.append(instance.number)
        await asyncio.sleep(0)
        self.now -= 1
        what = self.script.get((instance.number, self.asked.count(instance.number)), "passed")
        if isinstance(what, Exception):
            raise what
        if what == "for ever":
            await asyncio.Event().wait()
        return PASSED | {"outcome": what, "message": "it broke" if what == "failed" else ""}


@pytest.mark.asyncio
async def test_each_instance_has_one_result_and_all_slots_are_used() -> None:
    campaign, pool = Campaign(many(50)), FakePool(4, {})
    await campaign.run(pool)
    assert sorted(pool.asked) == sorted(campaign.results) == list(range(50))
    assert pool.most == 4
    assert summary(campaign) == {"passed": 50}


@pytest.mark.asyncio
async def test_an_instance_whose_worker_is_lost_runs_again() -> None:
    lost = WorkerLost("the worker was killed by SIGKILL")
    campaign = Campaign(many(5))
    await campaign.run(FakePool(2, {(2, 1): lost, (2, 2): lost}))
    assert summary(campaign) == {"passed": 5}
    assert [result.attempts for _, result in sorted(campaign.results.items())] == [1, 1, 3, 1, 1]
    assert campaign.lost == ["s.py::test_it [seed=3]: the worker was killed by SIGKILL"] * 2


@pytest.mark.asyncio
async def test_an_instance_that_kills_every_worker_is_crashed() -> None:
    campaign = Campaign(many(3))
    await campaign.run(FakePool(1, {(1, attempt): WorkerLost("the worker was killed by SIGSEGV") for attempt in (1, 2, 3, 4)}))
    assert summary(campaign) == {"crashed": 1, "passed": 2}
    assert (campaign.failures[0].message, campaign.failures[0].attempts) == ("the worker was killed by SIGSEGV, 3 times", ATTEMPTS)


@pytest.mark.asyncio
async def test_an_instance_that_takes_too_long_is_not_tried_again() -> None:
    campaign, pool = Campaign(many(3)), FakePool(1, {(1, 1): InstanceTimeout("it took longer than 5 s of the host's time")})
    await campaign.run(pool)
    assert summary(campaign) == {"passed": 2, "timeout": 1}
    assert pool.asked == [0, 1, 2]


@pytest.mark.asyncio
async def test_cancelled_it_keeps_what_it_has() -> None:
    campaign = Campaign(many(10))
    task = asyncio.create_task(campaign.run(FakePool(2, {(4, 1): "for ever", (5, 1): "failed", (6, 1): "for ever"})))
    while len(campaign.running) != 2 or len(campaign.results) < 5:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(campaign.results) == [0, 1, 2, 3, 5]
    assert summary(campaign) == {"failed": 1, "passed": 4, "not run": 5}


@pytest.mark.asyncio
async def test_enough_failures_end_it() -> None:
    campaign = Campaign(many(100), most_failures=2)
    await campaign.run(FakePool(1, {(3, 1): "failed", (5, 1): "failed"}))
    assert sorted(campaign.results) == [0, 1, 2, 3, 4, 5]


@pytest.mark.asyncio
async def test_reports_name_each_failure_and_its_command() -> None:
    campaign = Campaign(many(3))
    campaign.results.clear()
    await campaign.run(FakePool(1, {(1, 1): "failed", (2, 1): "skipped"}))
    entries = as_json(campaign, "s.py", {"seed": ["1", "2", "3"]})["results"]
    assert [entry["outcome"] for entry in entries] == ["passed", "failed", "skipped"]
    assert entries[1]["command"] == "python -m pytest s.py::test_it --avmm-seed 2"
    suite = ElementTree.fromstring(as_junit(campaign, "s.py"))[0]
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "1"]
    assert [case.get("name") for case in suite] == ["test_it[seed=1]", "test_it[seed=2]", "test_it[seed=3]"]
    assert suite[1][0].get("message") == "it broke"
    assert (suite[1][0].text or "").startswith("python -m pytest s.py::test_it --avmm-seed 2")


# -- with real workers

SCENARIO = """
import os, pathlib, signal, sys
import pytest

@pytest.mark.asyncio
@pytest.mark.avmm(memory="1M")
@pytest.mark.avmm_params(what="pass")
async def test_it(avmm_host, avmm_param, avmm_seed):
    import avmm
    rolls = []
    async def guest(cpu):
        await cpu.outb(0x80, vm.partition.random.randrange(256))
    vm = await avmm_host.create_vm(avmm.VmConfig(memory="1M", seed=avmm_seed), guest=guest)
    await vm.start()
    await vm.sleep(0.001 * vm.partition.random.randrange(1, 1000))
    match avmm_param["what"]:
        case "fail":
            pytest.fail(f"<seed {avmm_seed}> & more")
        case "kill-once" if not pathlib.Path("killed").exists():
            pathlib.Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            print("last words", file=sys.__stderr__, flush=True)
            os._exit(7)
        case "interrupt":
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scenario, which we are in."""
    (tmp_path / "scenario.py").write_text(SCENARIO)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\naddopts = -n2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_workers_run_what_is_found_and_a_killed_one_loses_nothing(folder: Path) -> None:
    async def main() -> tuple[Campaign, Campaign]:
        tests = await collect("scenario.py")
        assert tests == [Scenario("scenario.py::test_it", {"what": "pass"})]
        async with Processes(1) as pool:
            first = Campaign(instances(tests, parse(["what=kill-once|fail,seed=5"])))
            await first.run(pool)
            pid = pool.workers[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)  # between two instances as well
            second = Campaign(first.instances)
            await second.run(pool)
        return first, second

    first, second = uvloop.run(main())
    assert (folder / "killed").exists()
    assert [result.attempts for _, result in sorted(first.results.items())] == [2, 1]
    assert first.lost == ["scenario.py::test_it [what=kill-once seed=5]: the worker was killed by SIGKILL"]
    for campaign in (first, second):
        assert [result.outcome for _, result in sorted(campaign.results.items())] == ["passed", "failed"]
        assert campaign.failures[0].message.endswith("<seed 5> & more")
    assert len(second.lost) == 1
    assert {result.machine_seconds for result in first.results.values()} == {result.machine_seconds for result in second.results.values()}


def test_a_worker_that_ends_says_why_and_one_that_hangs_is_ended(folder: Path) -> None:
    async def main() -> None:
        worker = WorkerProcess()
        with pytest.raises(WorkerLost, match="the worker ended with status 7: last words"):
            await worker.ask({"run": Instance(0, "scenario.py::test_it", 1, {"what": "exit"}).as_dict()})
        assert worker.pid is None
        (folder / "hang.py").write_text("import signal\ndef test_it():\n    signal.pause()\n")
        with pytest.raises(InstanceTimeout, match=r"it took longer than 0.01 s"):
            await worker.ask({"run": Instance(0, "hang.py::test_it", 1, {}).as_dict()}, limit=0.01)
        assert worker.pid is None

    uvloop.run(main())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Call the command here; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "150")

    def call(*arguments: str, expect: int) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["campaign", *arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == expect, out + err
        return out, err

    return call


def test_the_command_prints_a_table_and_commands_and_writes_files(folder: Path, run: Callable[..., tuple[str, str]]) -> None:
    matrix = ("--matrix", "what=pass|fail,seeds=3")
    out, _ = run("scenario.py", *matrix, "--workers", "1", "--json", "r.json", "--junit", "r.xml", expect=1)
    assert "python -m pytest scenario.py::test_it --avmm-seed 3 --avmm-param what=fail" in out
    assert "1 failed, 1 passed" in out
    written = json.loads((folder / "r.json").read_text())
    assert written["summary"] == {"failed": 1, "passed": 1}
    assert ElementTree.parse(folder / "r.xml").getroot()[0].get("failures") == "1"
    out, _ = run("scenario.py", *matrix, "--workers", "2", "--json", "-", expect=1)
    again = json.loads(out)
    for entry in (*written["results"], *again["results"]):
        del entry["host_seconds"]
    assert again["results"] == written["results"], "the same seed ends the same way, whoever runs it"


def test_ctrl_c_ends_it_with_what_it_has(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("avmm")), "campaign", "scenario.py", "--workers", "1", "--json", "r.json"]
    done = subprocess.run(
        [*command, "--matrix", "what=pass|interrupt|fail,seeds=1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 130, done.stdout + done.stderr
    assert "1 passed, 2 not run" in done.stdout
    written = json.loads((folder / "r.json").read_text())
    assert [entry["parameters"] for entry in written["not run"]] == [{"what": "interrupt"}, {"what": "fail"}]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.py"], "there is no scenario gone.py"),
        (["broken.py"], "broken.py cannot be read: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (["empty.py"], "empty.py names no test: write a function test_"),
        (["scenario.py", "--matrix", "what=none,some"], "cannot read 'some' in the matrix"),
        (["scenario.py", "--json", "-", "--junit", "-"], "cannot both have standard output"),
        (["scenario.py", "--artefacts", "scenario.py"], "--artefacts scenario.py: this is not a directory"),
        (["scenario.py", "--scheduler", "here"], "there is no Dask scheduler at here"),
        (["scenario.py", "--json", "no/such/folder"], "--json no/such/folder: there is no directory no/such"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    folder: Path, run: Callable[..., tuple[str, str]], arguments: list[str], sentence: str
) -> None:
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "empty.py").write_text("x = 1\n")
    out, err = run(*arguments, expect=2)
    assert sentence in err
    assert (out, len(err.strip().splitlines())) == ("", 1)


def test_listing_runs_nothing(folder: Path, run: Callable[..., tuple[str, str]]) -> None:
    out, _ = run("scenario.py", "--matrix", "seeds=1..2", "--list", expect=0)
    assert out.splitlines() == ["scenario.py::test_it [seed=1]", "scenario.py::test_it [seed=2]"]


ON_DASK = """
import asyncio
from distributed import LocalCluster
from avmm.testing.campaign.campaign import Campaign
from avmm.testing.campaign.cluster import Cluster
from avmm.testing.campaign.matrix import instances, parse
from avmm.testing.campaign.processes import collect

async def main():
    local = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="inproc://", dashboard_address=None, asynchronous=True)
    async with local as cluster:
        campaign = Campaign(instances(await collect("scenario.py"), parse(["what=kill-once|fail,seed=2"])))
        async with Cluster(cluster.scheduler_address) as pool:
            await campaign.run(pool)
        for _, result in sorted(campaign.results.items()):
            print(result.outcome, result.attempts, result.instance.variant)
        print(*campaign.lost)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_dask_cluster_runs_it_the_same_way(folder: Path) -> None:
    """In a process of its own, as distributed keeps threads; its parts talk within the process, no port is opened."""
    (folder / "on_dask.py").write_text(ON_DASK)
    done = subprocess.run([sys.executable, "on_dask.py"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "passed 2 what=kill-once seed=2", "failed 1 what=fail seed=2",
        "scenario.py::test_it [what=kill-once seed=2]: the worker was killed by SIGKILL",
    ]  # fmt: skip


def test_a_worker_without_its_folder_says_so(folder: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="a worker has no folder .*gone: the scenario must be at the same path on every worker"):
            await WorkerProcess(str(folder / "gone")).ask({"collect": "scenario.py"})

    uvloop.run(main())


def test_a_worker_that_is_cancelled_while_it_starts_is_ended(folder: Path) -> None:
    async def main() -> None:
        worker = WorkerProcess()
        task = asyncio.create_task(worker.ask({"collect": "scenario.py"}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.pid is None

    uvloop.run(main())
