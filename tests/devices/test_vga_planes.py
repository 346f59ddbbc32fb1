"""The data path against a model that works on single bits, as the technical reference describes it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.vga.planes import SIZE, Planes

BYTE = st.integers(0, 255)
OFFSET = st.integers(0, 3)


class Model:
    """Four planes of four bytes."""

    def __init__(self) -> None:
        self.memory = [[0] * 4 for _ in range(4)]
        self.latches = [0] * 4
        self.gc = [0] * 9
        self.map_mask = 15

    def write(self, offset: int, value: int) -> None:
        mode = self.gc[5] & 3
        turn = self.gc[3] & 7
        for _ in range(turn):
            value_turned = (value >> 1) | ((value & 1) << 7)
            if mode in (0, 3):
                value = value_turned
        for plane in range(4):
            if not self.map_mask >> plane & 1:
                continue
            if self.gc[5] & 0x10 and (plane & 1) != (offset & 1):
                continue
            result = 0
            for bit in range(8):
                result |= self._bit(mode, plane, bit, value) << bit
            self.memory[plane][offset & 2 if self.gc[5] & 0x10 else offset] = result

    def _bit(self, mode: int, plane: int, bit: int, value: int) -> int:
        latch = self.latches[plane] >> bit & 1
        if mode == 1:
            return latch
        mask = self.gc[8] >> bit & 1
        if mode == 3:
            return self.gc[0] >> plane & 1 if mask and value >> bit & 1 else latch
        if mode == 2:
            data = value >> plane & 1
        elif self.gc[1] >> plane & 1:
            data = self.gc[0] >> plane & 1
        else:
            data = value >> bit & 1
        function = self.gc[3] >> 3 & 3
        data = (data, data & latch, data | latch, data ^ latch)[function]
        return data if mask else latch

    def read(self, offset: int) -> int:
        odd_even = self.gc[5] & 0x10
        if odd_even and not self.gc[5] & 8:
            self.latches = [plane[offset & 2] for plane in self.memory]
            return self.latches[(self.gc[4] & 2) | (offset & 1)]
        self.latches = [plane[offset] for plane in self.memory]
        if not self.gc[5] & 8:
            return self.latches[self.gc[4] & 3]
        answer = 0
        for bit in range(8):
            care = [plane for plane in range(4) if self.gc[7] >> plane & 1]
            answer |= all(self.latches[p] >> bit & 1 == self.gc[2] >> p & 1 for p in care) << bit
        return answer


def make() -> tuple[Planes, Model]:
    gc, sequencer = bytearray(16), bytearray(8)
    gc[8] = 0xFF
    sequencer[2] = 15
    model = Model()
    model.gc[8] = 0xFF
    return Planes(memoryview(bytearray(SIZE)), gc, sequencer), model


ACTION = st.one_of(
    st.tuples(st.just("gc"), st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8]), BYTE),
    st.tuples(st.just("map"), st.integers(0, 15), st.just(0)),
    st.tuples(st.just("write"), OFFSET, BYTE),
    st.tuples(st.just("read"), OFFSET, st.just(0)),
    st.tuples(st.just("wide"), st.just(0), st.integers(0, (1 << 32) - 1)),
)
BITS = {0: 15, 1: 15, 2: 15, 3: 0x1F, 4: 3, 5: 0x1B, 7: 15, 8: 255}


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(ACTION, max_size=40))
def test_same_as_the_model(actions: list[tuple[str, int, int]]) -> None:
    planes, model = make()
    for kind, where, value in actions:
        if kind == "gc":
            planes.gc[where] = model.gc[where] = value & BITS[where]
        elif kind == "map":
            planes.sequencer[2] = model.map_mask = where
        elif kind == "write":
            planes.write(where, value)
            model.write(where, value)
        elif kind == "wide":
            planes.write_many(0, 4, value)
            for i in range(4):
                model.write(i, value >> 8 * i & 0xFF)
        else:
            assert planes.read(where) == model.read(where)
    for plane in range(4):
        assert list(planes.ram[plane:16:4]) == model.memory[plane]


def test_bit_mask_and_latches_set_one_pixel() -> None:
    planes, _ = make()
    planes.gc[5] = 2
    planes.write(0, 0x0F)
    planes.gc[8] = 0x80
    assert planes.read(0) == 0xFF
    planes.write(0, 0x04)
    assert [planes.ram[plane] for plane in range(4)] == [0x7F, 0x7F, 0xFF, 0x7F]


def test_offsets_wrap_at_64_kb() -> None:
    planes, _ = make()
    planes.write_many(0xFFFF, 2, 0x2211)
    assert planes.ram[4 * 0xFFFF] == 0x11
    assert planes.ram[0] == 0x22
