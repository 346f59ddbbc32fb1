from __future__ import annotations

import pytest

from avmm.devices.debug import KEEP, DebugConsole, PostCode
from tests.devices.bench import Bench


@pytest.mark.parametrize("port", [0x402, 0xE9])
def test_debug_port_reads_e9_and_collects(port):
    bench = Bench()
    debug = DebugConsole(bench, port)
    heard = bytearray()
    debug.on_output = heard.append
    assert [(r.first, r.count, r.width) for r in debug.ports] == [(port, 1, 1)]
    assert bench.read(debug, port) == 0xE9
    for byte in b"SeaBIOS \xff\n":
        bench.write(debug, port, byte)
    assert debug.text() == "SeaBIOS \ufffd\n"
    assert heard == b"SeaBIOS \xff\n"
    debug.reset()
    assert debug.data() == b"SeaBIOS \xff\n"


def test_only_the_last_mebibyte_is_kept():
    bench = Bench()
    debug = DebugConsole(bench)
    debug.restore(DebugConsole.State(kept=bytes(KEEP), total=KEEP))
    for byte in b"last words":
        bench.write(debug, 0x402, byte)
    assert len(debug.data()) == KEEP
    assert debug.text().endswith("\0last words")
    assert debug.total == KEEP + 10
    for _ in range(KEEP):
        debug.write(0x402, 1, 0x2E)
    assert debug.data() == b"." * KEEP
    assert len(debug._kept) < 2 * KEEP


def test_post_code():
    bench = Bench()
    post = PostCode(bench)
    assert bench.read(post, 0x80) == 0
    bench.write(post, 0x80, 0x5A)
    assert bench.read(post, 0x80) == post.code == 0x5A
    other = PostCode(Bench())
    other.restore(post.save())
    assert other.code == 0x5A
    post.reset()
    assert post.code == 0


def test_foreign_states_are_refused():
    with pytest.raises(ValueError, match="debug console"):
        DebugConsole(Bench()).restore(PostCode.State())
    with pytest.raises(ValueError, match="POST code"):
        PostCode(Bench()).restore(DebugConsole.State())
