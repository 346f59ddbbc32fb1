"""The pytest plugin, used as its users do."""

from __future__ import annotations

import json
import re
import shlex

import pytest

pytest_plugins = ["pytester"]

INI = "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n"
STRICT = ("-p", "no:cacheprovider", "-W", "error", "-W", "ignore::DeprecationWarning:unicorn", "--strict-markers")


@pytest.fixture
def scenario(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(INI)
    return pytester


def lines_of(result: pytest.RunResult, name: str) -> list[str]:
    return [line for line in result.outlines if line.startswith(name)]


NEW_USER = """
import pytest

@pytest.mark.asyncio
@pytest.mark.avmm(memory="16M")
async def test_dir(screen, keyboard):
    await screen.wait_for("ok>")
    await keyboard.type("dir\\n")
    await screen.wait_for("readme.txt")
"""


def test_boot_type_expect_is_at_most_twelve_lines(scenario: pytest.Pytester) -> None:
    assert len(NEW_USER.strip().splitlines()) <= 12
    scenario.makepyfile(NEW_USER)
    scenario.runpytest_subprocess(*STRICT).assert_outcomes(passed=1)


def test_every_fixture(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(
        """
        import avmm, pytest

        @pytest.mark.asyncio
        async def test_all(avmm_host, avmm_vm, screen, serial, keyboard, mouse, avmm_seed, avmm_param):
            assert avmm_host.vms == {"vm": avmm_vm}
            assert (screen, serial) == (avmm_vm.screen, avmm_vm.serial)
            assert (keyboard, mouse) == (avmm_vm.keyboard, avmm_vm.mouse)
            assert avmm_vm.state is avmm.RunState.RUNNING
            assert (avmm_seed, avmm_vm.config.seed, avmm_param) == (0, 0, {})
        """
    )
    scenario.runpytest_inprocess(*STRICT).assert_outcomes(passed=1)


def test_a_machine_by_toml_file_and_by_markers(scenario: pytest.Pytester) -> None:
    scenario.makefile(".toml", machine='[vm.one]\nmemory = "8M"\nseed = 4\n', two='[host]\nstructure = "host"\n[vm.a]\n[vm.b]\nclock = "real"\n')
    scenario.makeini(INI + "avmm_machine = machine.toml\n")
    scenario.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.asyncio

        async def test_named_in_ini(avmm_vm):
            assert (avmm_vm.name, avmm_vm.config.memory, avmm_vm.config.clock) == ("one", "8M", "virtual")

        @pytest.mark.avmm(memory="4M", seed=9)
        async def test_the_marker_changes_a_field(avmm_vm):
            assert (avmm_vm.name, avmm_vm.config.memory, avmm_vm.config.seed) == ("one", "4M", 9)

        @pytest.mark.avmm("two.toml", vm="b")
        async def test_one_of_two(avmm_host, avmm_vm):
            assert (avmm_vm.name, avmm_vm.config.clock, avmm_host.structure) == ("b", "real", "host")

        @pytest.mark.avmm("two.toml", vm="b")
        class TestInner:
            @pytest.mark.avmm(vm="a", memory="2M")
            async def test_nearest_marker_wins(self, avmm_vm):
                assert (avmm_vm.name, avmm_vm.config.memory) == ("a", "2M")
        """
    )
    scenario.runpytest_inprocess(*STRICT).assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        ('memroy="8M"', "has no field 'memroy' (did you mean 'memory'?)"),
        ('memory="12"', "12 of memory is too little"),
        ('"gone.toml"', "cannot read *gone.toml: No such file"),
        ('"two.toml"', "two.toml has the machines a, b: name one as vm=..."),
        ('"two.toml", vm="c"', "two.toml has the machines a, b, not 'c'"),
        ('"bad.toml"', "bad.toml, line 2: there is no key 'dsks'"),
        ('vm="a"', "name the machine.toml in the marker"),
        ('"two.toml", "bad.toml"', "takes one machine.toml"),
    ],
)
def test_a_mistake_in_a_marker_is_one_sentence(scenario: pytest.Pytester, marker: str, sentence: str) -> None:
    scenario.makefile(".toml", two="[vm.a]\n[vm.b]\n", bad="[vm.x]\ndsks = []\n")
    scenario.makepyfile(f"import pytest\n@pytest.mark.asyncio\n@pytest.mark.avmm({marker})\nasync def test_it(avmm_vm): pass\n")
    result = scenario.runpytest_inprocess(*STRICT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"avmm: *{sentence.replace('[', '[[]')}*"])
    result.stdout.no_fnmatch_line("*Traceback*")


WRONG = """
import pytest

@pytest.mark.asyncio
@pytest.mark.avmm(memory="16M")
@pytest.mark.avmm_params(command="dir")
async def test_never(avmm_vm, screen, keyboard, avmm_param):
    await screen.wait_for("ok>")
    await keyboard.type(avmm_param["command"] + "\\n")
    await screen.wait_for("no such words", timeout=1)
"""


def test_a_failure_shows_the_machine_as_it_was_then(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(test_wrong=WRONG)
    result = scenario.runpytest_inprocess(*STRICT, "--avmm-artefacts", "kept", "--avmm-seed", "7", "--avmm-param", "command=echo it was")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*WaitTimeout: 1 s of machine time passed*", "test_wrong.py:*: WaitTimeout", "*avmm: vm*", "running after * s of machine time",
            "ok> echo it was", "it was", "ok> _", "serial line, last part:", "last exits:", "rip 0x*", "saved: kept/*.cast", "*to see it again*",
        ]
    )  # fmt: skip
    after = re.search(r"running after ([\d.]+) s", result.stdout.str())
    assert after is not None
    assert 1 < float(after[1]) < 2, "the machine went on after the failure"

    assert {path.name for path in (scenario.path / "kept").iterdir()} == {
        f"test_wrong.py-test_never-command-echo-it-was-seed-7-vm.{ending}" for ending in ("png", "cast", "trace.jsonl", "serial.txt")
    }
    picture, cast, trace, serial = ((scenario.path / "kept" / f"test_wrong.py-test_never-command-echo-it-was-seed-7-vm.{ending}").read_bytes()
                                    for ending in ("png", "cast", "trace.jsonl", "serial.txt"))  # fmt: skip
    assert picture.startswith(b"\x89PNG")
    assert b"it was" in serial
    header, *frames = map(json.loads, cast.splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 80, 25)
    assert [at for at, _, _ in frames] == sorted(at for at, _, _ in frames)
    assert "it was" in frames[-1][2] or "it was" in frames[-2][2]
    assert [json.loads(line)["name"] for line in trace.splitlines()][-1] == "exit"


def test_the_printed_command_fails_the_same_way(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(test_wrong=WRONG)
    first = scenario.runpytest_inprocess(*STRICT, "--avmm-seed", "7", "--avmm-param", "command=echo it's me")
    (command,) = lines_of(first, "python -m pytest")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "pytest"]
    again = scenario.runpytest_inprocess(*words[3:], *STRICT)
    again.assert_outcomes(failed=1)
    assert lines_of(again, "running after") == lines_of(first, "running after") != []
    assert "ok> echo it's me" in again.outlines
    assert lines_of(again, "rip 0x") == lines_of(first, "rip 0x")


def test_recording_changes_nothing(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(test_wrong=WRONG)
    plain, recorded = (scenario.runpytest_inprocess(*STRICT, *more) for more in ((), ("--avmm-artefacts", "kept")))
    for name in ("running after", "rip 0x"):
        assert lines_of(plain, name) == lines_of(recorded, name) != []


def test_a_picture_is_sketched_recorded_and_several_machines_are_shown(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(
        """
        import avmm, pytest

        async def painter(cpu):                              # mode 13h by hand, and a white upper half
            await cpu.outb(0x3C2, 0x63)
            for port, values in ((0x3C4, {1: 1, 2: 15, 4: 14}), (0x3CE, {5: 0x40, 6: 5}),
                                 (0x3D4, {1: 79, 7: 0x1F, 9: 0x41, 0x12: 0x8F, 0x13: 40, 0x14: 0x40, 0x17: 0xA3})):
                for index, value in values.items():
                    await cpu.outw(port, value << 8 | index)
            await cpu.inb(0x3DA)
            await cpu.outb(0x3C0, 0x10)
            await cpu.outb(0x3C0, 0x41)
            await cpu.outb(0x3C0, 0x20)
            await cpu.outb(0x3C8, 15)
            for _ in range(3):
                await cpu.outb(0x3C9, 63)
            for at in range(0, 320 * 100, 4):
                await cpu.store(0xA0000 + at, 0x0F0F0F0F, 4)
            await cpu.hlt()

        @pytest.mark.asyncio
        async def test_graphics(avmm_host):
            for name in ("one", "two"):
                vm = await avmm_host.create_vm(avmm.VmConfig(name=name, memory="1M"), guest=painter)
                await vm.start()
            await vm.screen.wait_pixel(319, 99, (255, 255, 255), timeout=1)
            assert not "as expected"
        """
    )
    result = scenario.runpytest_inprocess(*STRICT, "--avmm-artefacts", "kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*avmm: one*", "*avmm: two*", "graphics, 320x200:", "@" * 78])
    casts = sorted((scenario.path / "kept").glob("*.cast"))
    assert [path.name.rpartition("-")[2] for path in casts] == ["one.cast", "two.cast"]
    assert "\u2580" in casts[1].read_text()


def test_a_fixture_that_fails_shows_the_machine_too(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(
        """
        import pytest, pytest_asyncio

        @pytest_asyncio.fixture
        async def booted(avmm_vm):
            await avmm_vm.screen.wait_for("never", timeout=0.5)

        @pytest.mark.asyncio
        async def test_it(booted): pass
        """
    )
    result = scenario.runpytest_inprocess(*STRICT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*avmm: vm*", "ok> _", "last exits:"])


def test_a_machine_that_was_shut_down_can_still_be_shown(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        async def test_it(avmm_vm, serial):
            await serial.wait_for("ok> ")
            await avmm_vm.shutdown()
            assert False
        """
    )
    result = scenario.runpytest_inprocess(*STRICT, "--avmm-artefacts", "kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*avmm: vm*", "off after *", "ok> _", "saved: *.png"])


def test_artefacts_that_cannot_be_saved_are_said_and_no_more(scenario: pytest.Pytester) -> None:
    (scenario.path / "kept").write_text("a file")
    scenario.makepyfile(test_wrong=WRONG)
    result = scenario.runpytest_inprocess(*STRICT, "--avmm-artefacts", "kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["not saved: kept/test_wrong.py-test_never-vm.png: File exists"])


def test_parameters_become_what_their_defaults_are(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(
        """
        import pytest

        @pytest.mark.avmm_params(count=1, rate=0.5, fast=False, fault="none", rest=7)
        def test_it(avmm_param, avmm_seed):
            assert avmm_param == {"count": 12, "rate": 2.0, "fast": True, "fault": "torn", "rest": 7}
            assert avmm_seed == 3
        """
    )
    given = [word for value in ("count=12", "rate=2", "fast=yes", "fault=torn") for word in ("--avmm-param", value)]
    scenario.runpytest_inprocess(*STRICT, "--avmm-seed", "3", *given).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("conut=2", "no test has the parameter 'conut' (did you mean 'count'?); there are: count"),
        ("count", "cannot read the parameter 'count': write NAME=VALUE"),
        ("count=two", "the parameter count is a whole number, not 'two'"),
    ],
)
def test_a_mistake_in_a_parameter_is_one_sentence(scenario: pytest.Pytester, given: str, sentence: str) -> None:
    scenario.makepyfile("import pytest\n@pytest.mark.avmm_params(count=1)\ndef test_it(avmm_param): pass\n")
    result = scenario.runpytest_inprocess(*STRICT, "--avmm-param", given)
    assert result.ret != 0
    assert sentence in result.stdout.str() + result.stderr.str()


def test_two_runs_are_alike_also_beside_each_other(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        @pytest.mark.parametrize("run", [1, 2, 3])
        async def test_time(avmm_vm, screen, keyboard, run):
            await screen.wait_for("ok>")
            await keyboard.type("time\\n")
            await screen.wait_for("ok>")
            print("UNITS", avmm_vm.partition.processor.units, avmm_vm.now)
        """
    )
    result = scenario.runpytest_subprocess("-rP", "-n", "2")
    result.assert_outcomes(passed=3)
    lines = lines_of(result, "UNITS")
    assert len(lines) == 3
    assert len(set(lines)) == 1


def test_failures_on_xdist_workers_show_and_keep_the_same(scenario: pytest.Pytester) -> None:
    scenario.makepyfile(test_wrong=WRONG, test_also=WRONG)
    result = scenario.runpytest_subprocess("-n", "2", "--avmm-artefacts", "kept")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["ok> _", "last exits:", "python -m pytest test_*.py::test_never"])
    assert len(list((scenario.path / "kept").glob("*.cast"))) == 2
