"""A file on a disk that fails now and then, under a guest that does not know that anybody is there.

    pytest examples/scenarios
    avmm campaign examples/scenarios/test_a_failing_disk.py --matrix "seeds=1..20,fault=none|late|flaky"
"""

import pytest

import avmm_guests
from avmm.testing import Disk

RULES = {
    "none": [],
    "late": [{"action": "delay", "op": "write", "seconds": 0.02}],
    "flaky": [{"action": "error", "op": "write", "probability": 0.5}],
}

pytestmark = pytest.mark.avmm(memory="16M", disks=[Disk(avmm_guests.image(), "overlay")], physical=["ata0"])


@pytest.mark.avmm_params(fault="none")
async def test_what_was_written_is_there_or_the_user_was_told(avmm_vm, serial, avmm_param, avmm_seed):
    await serial.wait_for("ok> ")
    await avmm_vm.virtualize("ata0")
    await avmm_vm.interpose("ata0", "fault", rules=RULES[avmm_param["fault"]], seed=avmm_seed)
    serial.write("write note.txt still here\n")
    told = "reported an error" in await serial.wait_for("\nok> ")
    serial.write("read note.txt\n")
    assert ("still here" in await serial.wait_for("\nok> ")) != told


async def test_data_is_written_before_the_directory_names_it(avmm_vm, serial, tmp_path):
    await serial.wait_for("ok> ")
    await avmm_vm.virtualize("ata0")
    await avmm_vm.interpose("ata0", "trace", path=tmp_path / "requests.jsonl")
    serial.write("write note.txt hello\n")
    await serial.wait_for("\nok> ")
    operations = [line.split('"op": "')[1].split('"')[0] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert operations == ["write", "flush", "write", "flush"]
