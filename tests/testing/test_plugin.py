"""The pytest plugin, used as its users do."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

INI = "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n"


def test_boot_type_expect_is_a_few_lines(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        @pytest.mark.avmm(memory="16M")
        async def test_dir(screen, keyboard):
            await screen.wait_for("ok>")
            await keyboard.type("dir\\n")
            await screen.wait_for("readme.txt")
        """
    )
    pytester.runpytest_subprocess("-W", "error", "--strict-markers").assert_outcomes(passed=1)


def test_a_failure_shows_the_screen_and_saves_a_picture(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        async def test_never(avmm_vm):
            await avmm_vm.screen.wait_for("no such words", timeout=1)
        """
    )
    result = pytester.runpytest_subprocess("--avmm-artefacts", "pictures")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*WaitTimeout*", "*avmm: vm*", "running after * s of machine time", "*ok>*", "*last exits:*", "*rip 0x*"])
    assert (pytester.path / "pictures" / "test_never-vm.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_are_alike(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        @pytest.mark.parametrize("run", [1, 2])
        async def test_time(avmm_vm, screen, keyboard, run):
            await screen.wait_for("ok>")
            await keyboard.type("time\\n")
            await screen.wait_for("ok>")
            print("UNITS", avmm_vm.partition.processor.units, avmm_vm.now)
        """
    )
    result = pytester.runpytest_subprocess("-rP")
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if line.startswith("UNITS")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
