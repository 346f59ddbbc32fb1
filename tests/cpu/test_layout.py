"""The engine is refused, with one sentence, where it is not the one that avmm knows."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time

import pytest

from avmm.cpu.engine import ProcessorError
from avmm.cpu.unicorn import layout
from tests.cpu.rig import Rig


def find_again() -> layout.Native:
    """``layout.native()`` without what it remembers."""
    return layout.native.__wrapped__()


def test_everything_is_found_quickly() -> None:
    begin = time.process_time()
    native = find_again()
    assert time.process_time() - begin < 1.0
    assert native.tlb is not None  # fast stores are in place
    assert layout.native() is layout.native()


def test_a_wrong_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "version", lambda name: "2.0.1")
    with pytest.raises(ProcessorError) as error:
        find_again()
    assert str(error.value) == "avmm's processor needs unicorn==2.1.4, found 2.0.1: pip install unicorn==2.1.4"


def test_the_installed_version_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layout.version is importlib.metadata.version  # type: ignore[attr-defined]


OFFSETS = ["CPU_EXCEPTION_INDEX", "CPU_HALTED", "CPU_INTERRUPT_REQUEST", "CPU_ICOUNT_HIGH", "ENV_CR", "ENV_EFER", "ENV_STAR", "ENV_SYSENTER",
           "ENV_TSC_AUX", "ENV_IS_INT", "ENV_NEXT_EIP", "ENV_SEGMENTS", "ENV_RFLAGS", "ENV_HFLAGS", "ENV_RIP", "ENV_ERROR_CODE"]  # fmt: skip


@pytest.mark.parametrize("name", OFFSETS)
def test_a_wrong_offset_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, name, getattr(layout, name) + 8)
    with pytest.raises(ProcessorError, match=r"^this build of unicorn 2\.1\.4 is laid out differently \(.+\); avmm needs the Linux x86-64 wheel$"):
        find_again()


def test_a_wrong_no_exit_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "UC_NO_EXIT_REQUEST", layout.UC_NO_EXIT_REQUEST + 0x20)
    with pytest.raises(ProcessorError, match="no_exit_request"):
        find_again()


def test_a_missing_symbol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FUNCTIONS", (*layout.FUNCTIONS, "uc_not_there"))
    with pytest.raises(ProcessorError, match=r"does not export what avmm needs: .*uc_not_there"):
        find_again()


def test_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ProcessorError, match="needs Linux on x86-64"):
        find_again()


def test_a_refusal_breaks_no_processor_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig("mov al, 7\nSTOP")
    monkeypatch.setattr(layout, "version", lambda name: "1.0")
    with pytest.raises(ProcessorError):
        find_again()
    rig.run()
    assert rig.reg("al") == 7


def test_without_fast_stores_everything_works() -> None:
    """The slots are optional: with them missing stores are only slow. In a process of its own, since they are set once."""
    program = """
from avmm.cpu.unicorn import layout
layout._find_tlb = lambda: None
from tests.cpu.test_guest_memory import test_a_store_into_the_next_block, test_self_modifying_code_through_aliases
assert layout.native().tlb is None
test_a_store_into_the_next_block()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
