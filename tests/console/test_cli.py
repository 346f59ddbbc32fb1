"""``avmm run --headless`` and ``avmm doctor``: steps, exit statuses, and what is printed and written."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import wave
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import click
import pytest
from PIL import Image

import avmm
from avmm_console.cli import COMMANDS, group
from tests.console import sectors
from tests.console.conftest import Avmm

# -- steps


def test_steps_are_done_in_the_order_given(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "echo.img", "ready> ", sectors.ECHO)
    steps = ["--expect", "ready> ", "--type", "one ", "--type", "two", "--expect", "ready> one two", "--type", r"\\x"]
    result = avmm_command("run", image, "--headless", *steps, "--json")
    assert result.status == 0
    assert [(step["kind"], step["text"]) for step in json.loads(result.out)["steps"]] == [
        ("expect", "ready> "), ("type", "one "), ("type", "two"), ("expect", "ready> one two"), ("type", "\\x"),
    ]  # fmt: skip


def test_a_wrong_order_times_out(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "echo.img", "ready> ", sectors.ECHO)
    result = avmm_command("run", image, "--headless", "--expect", "ready> one", "--type", "one", "--timeout", "2")
    assert result.status == 1
    assert "step 1 of 2, expect 'ready> one': 2 s of machine time passed" in result.err


def test_a_time_out_prints_the_screen_and_the_serial_line(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "on the screen", sectors.SERIAL_GREETING + sectors.IDLE)
    result = avmm_command("run", image, "--headless", "--expect", "on the", "--expect", "nowhere", "--timeout", "1")
    assert result.status == 1
    assert "step 2 of 2, expect 'nowhere'" in result.err
    assert "\non the screen\n" in result.err
    assert "\nserial>\n" in result.err
    assert result.out == ""


def test_type_goes_to_the_serial_line_when_that_is_where_the_prompt_was(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "serial.img", "", sectors.SERIAL_GREETING + sectors.SERIAL_ECHO)
    result = avmm_command("run", image, "--headless", "--expect", "serial>", "--type", r"abc\n", "--expect", "abc\r", "--timeout", "5")
    assert result.status == 0, result.err
    wrong = avmm_command(
        "run", image, "--headless", "--expect", "serial>", "--type", "abc", "--expect", "abc", "--timeout", "1", "--type-to", "keyboard"
    )
    assert wrong.status == 1


def test_each_step_sees_what_came_over_the_serial_line_since_the_last_match(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "serial.img", "", sectors.SERIAL_GREETING + sectors.IDLE)
    assert avmm_command("run", image, "--headless", "--expect", "ser", "--expect", "ial>").status == 0
    assert avmm_command("run", image, "--headless", "--expect", "ial>", "--expect", "ser", "--timeout", "1").status == 1


def test_without_steps_it_runs_until_the_guest_powers_off(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "off.img", "bye", sectors.POWER_OFF)
    result = avmm_command("run", image, "--headless", "--print-screen")
    assert (result.status, result.out, result.err) == (0, "bye\n", "")


def test_a_guest_that_goes_off_during_a_step_did_not_do_it(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "off.img", "bye", sectors.POWER_OFF)
    result = avmm_command("run", image, "--headless", "--expect", "hello")
    assert result.status == 1
    assert "the guest went off first" in result.err


def test_without_steps_a_guest_that_goes_on_times_out(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "idle.img", "waiting")
    result = avmm_command("run", image, "--headless", "--timeout", "3")
    assert result.status == 1
    assert result.err.startswith("avmm: 3 s of machine time passed before the guest powered off\n")


# -- failures


@pytest.mark.parametrize(
    ("then", "more"), [(sectors.TRIPLE_FAULT, ("--triple-fault", "stop")), (sectors.FETCH_FROM_NOTHING, ())], ids=["triple", "fetch"]
)
def test_a_failure_is_reported_with_registers_disassembly_and_exits(
    avmm_command: Avmm, tmp_path: Path, then: bytes, more: tuple[str, ...]
) -> None:
    image = sectors.write(tmp_path / "bad.img", "last words", then)
    result = avmm_command("run", image, "--headless", "--expect", "never", *more)
    assert result.status == 3
    for part in ("avmm: vm failed", "rax 0000", "next instructions:\n0x000", "last exits:\nrip 0x", "\nlast words\n"):
        assert part in result.err


# -- bad usage


def test_an_image_that_is_not_bootable_is_named(avmm_command: Avmm, tmp_path: Path) -> None:
    (tmp_path / "zero.img").write_bytes(bytes(4096))
    shot = tmp_path / "shot.png"
    result = avmm_command("run", tmp_path / "zero.img", "--headless", "--expect", "x", "--screenshot", shot, "--serial", tmp_path / "log")
    assert result.status == 2
    assert result.sentence == f"avmm: {tmp_path}/zero.img is not bootable: drive 80h: no boot signature"
    assert sorted(os.listdir(tmp_path)) == ["zero.img"]


def test_an_argument_left_out_is_one_sentence_too(avmm_command: Avmm) -> None:
    result = avmm_command("ctl", "mode", "vm")
    assert result.status == 2
    assert result.sentence.endswith("Choose from: emulated, enlightened, shunt-only (avmm ctl mode --help explains)")


BAD = {
    "missing": (["nothing.img"], "nothing.img does not exist"),
    "short": (["short.img"], "too short for a disk image: 100 bytes"),
    "directory": (["folder"], "is a directory"),
    "fifo": (["fifo"], "is not a file that can hold a disk image"),
    "two of one": (["--disk", "good.img", "--disk", "good.img"], "is in use"),
    "missing floppy": (["--floppy", "nothing.img"], "does not exist"),
    "missing CD": (["--cdrom", "nothing.iso"], "does not exist"),
    "no kernel": (["--kernel", "good.img"], "is no kernel"),
    "missing kernel": (["--kernel", "nothing"], "cannot read the kernel nothing: No such file"),
    "kernel directory": (["--kernel", "folder"], "cannot read the kernel folder: Is a directory"),
    "initrd alone": (["--initrd", "good.img"], "an initrd needs a kernel"),
    "append alone": (["good.img", "--append", "x"], "needs a kernel"),
    "little memory": (["good.img", "--memory", "512K"], "too little: a PC needs at least 1M"),
    "much memory": (["good.img", "--memory", "999G"], "too much"),
    "nonsense memory": (["good.img", "--memory", "lots"], "cannot read 'lots' as a size"),
    "firmware": (["good.img", "--bios", "nothing.bin"], "cannot read the firmware nothing.bin"),
    "small firmware": (["good.img", "--bios", "good.img"], "a firmware image is 64K to 16M"),
    "unknown option": (["good.img", "--frobnicate"], "no such option"),
    "two images": (["good.img", "good.img"], "unexpected extra argument"),
    "clock": (["good.img", "--clock", "cuckoo"], "'cuckoo' is not one of 'real', 'virtual'"),
    "timeout": (["good.img", "--timeout", "-1"], "a number of seconds above 0"),
    "timeout text": (["good.img", "--timeout", "x"], "invalid value for '--timeout'"),
    "escape": (["good.img", "--type", r"\q"], r"\q means nothing"),
    "half an escape": (["good.img", "--type", "\\"], "means nothing"),
    "untypable": (["good.img", "--type", "日"], "cannot be typed on a US keyboard"),
    "empty step": (["good.img", "--expect", ""], "--expect needs some text"),
    "both modes": (["good.img", "--overlay", "--read-only"], "choose one of"),
    "screenshot folder": (["good.img", "--screenshot", "no/shot.png"], "there is no directory no"),
    "screenshot directory": (["good.img", "--screenshot", "folder"], "this is a directory"),
    "serial folder": (["good.img", "--serial", "no/log"], "there is no directory no"),
    "no snapshot": (["--restore", "nothing"], "cannot read the snapshot nothing: No such file"),
    "foreign snapshot": (["--restore", "good.img"], "good.img is not a snapshot of avmm"),
    "snapshot and image": (["good.img", "--restore", "x"], "the machine of a snapshot is in the snapshot: leave IMAGE away"),
    "no record": (["--record-input", "no/r"], "there is no directory no"),
    "record in real time": (["--record-input", "r", "--clock", "real"], "--record-input needs virtual time"),
    "record from a snapshot": (["--record-input", "r", "--restore", "x"], "--record-input begins at power-on"),
    "snapshot and clock": (["--restore", "x", "--clock", "real"], "leave --clock away"),
    "no name": (["good.img", "--name", "a/b"], "--name: 'a/b' is no name for a machine"),
    "prefix": (["good.img", "--prefix", "F1"], "--prefix: 'F1' cannot be a prefix"),
    "stdout twice": (["good.img", "--serial", "stdio", "--json"], "leave --json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_usage_is_one_sentence_and_nothing_is_written(
    case: str, avmm_command: Avmm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sectors.write(tmp_path / "good.img", "good")
    (tmp_path / "short.img").write_bytes(bytes(100))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    arguments, sentence = BAD[case]
    result = avmm_command("run", "--headless", *arguments)
    assert result.status == 2
    assert sentence in result.sentence
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_file_without_permission(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "secret.img")
    os.chmod(image, 0)
    result = avmm_command("run", image, "--headless")
    assert result.status == 2
    assert "secret.img" in result.sentence


@pytest.mark.parametrize("option", [["--expect", "x"], ["--type", "x"], ["--serial", "stdio"], ["--json"], ["--timeout", "3"]])
def test_what_needs_headless(option: list[str], avmm_command: Avmm, tmp_path: Path) -> None:
    result = avmm_command("run", sectors.write(tmp_path / "a.img"), *option)
    assert result.status == 2
    assert "only works with --headless" in result.sentence


def test_the_console_needs_a_terminal(avmm_command: Avmm, tmp_path: Path) -> None:
    result = avmm_command("run", sectors.write(tmp_path / "a.img"))
    assert result.status == 2
    assert "needs a terminal" in result.sentence


def test_unknown_commands_and_the_list_of_commands(avmm_command: Avmm) -> None:
    assert "no such command 'frobnicate'" in avmm_command("frobnicate").sentence
    for arguments in ([], ["--help"]):
        result = avmm_command(*arguments)
        assert (result.status, result.err) == (0, "")
        assert "avmm run disk.img --headless --expect" in result.out
    for name in ("ctl", "demo"):
        result = avmm_command(name)
        assert (result.status, result.err) == (0, "")
        assert result.out.startswith(f"Usage: avmm {name} ")
    assert r'--type "linux\n"' in avmm_command("run", "--help").out
    assert avmm_command("--version").out == f"avmm, version {version('avmm')}\n"


# -- what is printed and written


def test_json_holds_the_result_the_screen_and_the_statistics(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "hello", sectors.SERIAL_GREETING + sectors.IDLE)
    result = avmm_command("run", image, "--headless", "--expect", "hello", "--expect", "nowhere", "--timeout", "1", "--json")
    assert result.status == 1
    found = json.loads(result.out)
    assert (found["status"], found["state"], found["screen"], found["serial"]) == (1, "running", ["hello"], "serial>")
    assert [step["done"] for step in found["steps"]] == [True, False]
    assert 1 <= found["machine_seconds"] < 2
    assert found["stats"]["exits"]["out"] > 7
    assert any(port["address"] == 0x3F8 and port["writes"] == 7 for port in found["stats"]["ports"])


def test_stats_are_a_table(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "", sectors.SERIAL_GREETING + sectors.IDLE)
    result = avmm_command("run", image, "--headless", "--expect", "serial>", "--stats")
    assert result.status == 0
    assert "interrupts injected" in result.out
    assert "0x3f8" in result.out


def test_the_screenshot_is_what_the_monitor_shows(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "", sectors.MODE_13H + sectors.SERIAL_GREETING + sectors.IDLE)
    result = avmm_command("run", image, "--headless", "--expect", "serial>", "--screenshot", tmp_path / "shot.png")
    assert result.status == 0
    with Image.open(tmp_path / "shot.png") as picture:
        assert picture.size == (320, 200)
        assert [picture.getpixel(at) for at in ((0, 0), (319, 50), (0, 150))] == [(170, 0, 0), (170, 0, 0), (0, 0, 0)]


def test_the_speaker_is_recorded(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "", sectors.BEEP + sectors.IDLE)
    result = avmm_command("run", image, "--headless", "--timeout", "0.5", "--speaker", tmp_path / "beep.wav")
    assert result.status == 1
    with wave.open(str(tmp_path / "beep.wav")) as sound:
        samples = memoryview(sound.readframes(sound.getnframes())).cast("h")
        rises = sum(1 for a, b in pairwise(samples) if a < 6000 <= b)
        assert rises == pytest.approx(1000 * sound.getnframes() / sound.getframerate(), rel=0.02)


def test_serial_output_is_appended_to_a_file(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "", sectors.SERIAL_GREETING + sectors.POWER_OFF)
    for times in (1, 2):
        assert avmm_command("run", image, "--headless", "--serial", tmp_path / "log").status == 0
        assert (tmp_path / "log").read_bytes() == b"serial>" * times


@pytest.mark.parametrize("length", [1, 5000], ids=["at the end", "before"])
def test_a_serial_file_that_cannot_be_written_is_one_sentence(length: int, avmm_command: Avmm, tmp_path: Path) -> None:
    send = bytes.fromhex("b9") + length.to_bytes(2, "little") + bytes.fromhex("baf803 b078 ee e2fd")  # 'x', again and again
    image = sectors.write(tmp_path / "a.img", "", send + sectors.POWER_OFF)
    result = avmm_command("run", image, "--headless", "--serial", "/dev/full")
    assert result.status == 2
    assert result.sentence == "avmm: --serial /dev/full: No space left on device"


def test_the_overlay_leaves_the_image_alone(avmm_command: Avmm, tmp_path: Path) -> None:
    # Writes a zero sector over the boot sector; prints "f" on an error.
    write_mbr = bytes.fromhex("b80103 bb007e b90100 ba8000 cd13 7306 b066 b40e cd10")
    image = sectors.write(tmp_path / "a.img", "go ", write_mbr + sectors.POWER_OFF)
    before = Path(image).read_bytes()
    assert avmm_command("run", image, "--headless", "--overlay", "--print-screen", "--timeout", "1").out == "go\n"
    assert Path(image).read_bytes() == before
    assert avmm_command("run", image, "--headless", "--read-only", "--print-screen", "--timeout", "1").out == "go f\n"
    assert Path(image).read_bytes() == before
    assert avmm_command("run", image, "--headless", "--timeout", "1").status == 0
    assert Path(image).read_bytes() == bytes(512) + before[512:]


def test_the_built_in_guest_is_what_starts_without_an_image(avmm_command: Avmm) -> None:
    result = avmm_command("run", "--headless", "--expect", "ok>", "--type", r"echo a b\n", "--expect", "a b\n", "--print-screen")
    assert result.status == 0, result.err
    assert "ok> echo a b" in result.out


# -- a process of its own: pipes and signals


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "avmm_console", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_run_goes_on_from_a_snapshot(avmm_command: Avmm, tmp_path: Path) -> None:
    image, file = sectors.write(tmp_path / "echo.img", "ready> ", sectors.ECHO), tmp_path / "snapshot"

    async def save() -> None:
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="2M", disks=[avmm.Disk(image, "ro")]))
            await vm.start()
            await vm.screen.wait_for("ready>")
            await vm.keyboard.type("before ")
            await vm.screen.wait_for("before")
            await (await vm.snapshot()).save(file)

    asyncio.run(save())
    result = avmm_command("run", "--restore", file, "--headless", "--type", "after", "--expect", "ready> before after", "--timeout", "2")
    assert result.status == 0, result.err


def test_a_recorded_run_is_made_again(avmm_command: Avmm, tmp_path: Path) -> None:
    image, file = sectors.write(tmp_path / "echo.img", "ready> ", sectors.ECHO), tmp_path / "record"
    steps = ["--expect", "ready> ", "--type", "one ", "--expect", "one ", "--type", "two", "--expect", "two"]
    result = avmm_command("run", image, "--read-only", "--headless", "--record-input", file, *steps)
    assert result.status == 0, result.err
    again = avmm_command("replay", file, "--print-screen")
    assert again.status == 0, again.err
    assert again.out == "ready> one two\n"
    assert "14 inputs" in again.err
    assert ": identical" in again.err
    os.truncate(image, 512)
    changed = avmm_command("replay", file)
    assert changed.status == 2
    assert "echo.img is not what disk0" in changed.sentence
    refused = avmm_command("run", image, "--headless", "--record-input", tmp_path / "other")
    assert refused.status == 2
    assert "is written in place, and cannot be brought back" in refused.sentence
    assert not (tmp_path / "other").exists()


def test_serial_on_standard_input_and_output(tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "serial.img", "", sectors.SERIAL_GREETING + sectors.SERIAL_ECHO)
    with _start("run", image, "--headless", "--serial", "stdio") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(7) == b"serial>"
        process.stdin.write(b"echo \xff\x00!")
        process.stdin.flush()
        assert process.stdout.read(8) == b"echo \xff\x00!"
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"")
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "busy.img", "", sectors.SERIAL_GREETING + b"\xeb\xfe")
    log = tmp_path / "log"
    with _start("run", image, "--headless", "--serial", str(log), "--timeout", "100000") as process:
        deadline = time.monotonic() + 20
        while not (_locked(image) and log.exists() and log.read_bytes() == b"serial>") and time.monotonic() < deadline:
            time.sleep(0.02)
        written = log.read_bytes() if log.exists() else b"nothing"
        process.send_signal(number)
        assert process.communicate() == (b"", b"")
    assert written == b"serial>"  # while the machine ran, not when it ended
    assert process.returncode == 128 + number
    assert log.read_bytes() == b"serial>"


def _locked(image: str) -> bool:
    import fcntl

    with open(image, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# -- doctor


def test_doctor_finds_this_machine_in_order(avmm_command: Avmm) -> None:
    result = avmm_command("doctor", "--json")
    assert result.status == 0
    checks = {check["subject"]: check for check in json.loads(result.out)}
    for essential in ("platform", "Python", "processor", "event loop", "boot test"):
        assert checks[essential]["state"] in ("ok", "note")
        assert checks[essential]["essential"]
    assert "int 10h" in checks["boot test"]["found"]
    table = avmm_command("doctor")
    assert table.status == 0
    assert "boot test" in table.out
    assert "…" not in table.out


def test_doctor_says_what_is_missing(avmm_command: Avmm, monkeypatch: pytest.MonkeyPatch) -> None:
    from avmm.cpu.engine import ProcessorError
    from avmm.cpu.unicorn import layout

    def refuse() -> None:
        raise ProcessorError("no processor today")

    monkeypatch.setattr(layout, "native", refuse)
    result = avmm_command("doctor", "--json")
    assert result.status == 1
    checks = {check["subject"]: check for check in json.loads(result.out)}
    assert checks["processor"]["state"] == "missing"
    assert "no processor today" in checks["processor"]["found"]


def test_a_command_is_listed_with_the_first_sentence_of_its_own_help() -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(limit=200) == COMMANDS[name][1]


def test_speaking_to_a_machine_elsewhere_and_asking_for_help_load_no_machine() -> None:
    look = "import sys; sys.exit([name for name in sys.modules if name.startswith(('avmm.hypervisor', 'avmm.boot', 'prompt_toolkit', 'rich'))])"
    for module in ("avmm_console.cli", "avmm_console.ctl"):
        done = subprocess.run([sys.executable, "-c", f"import {module}; {look}"], capture_output=True, text=True, check=False)
        assert done.stderr == "[]\n"
