from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.storage.storvsp import Phase, ProtocolError, Reply, Reset, StorVsp
from avmm.storage.wire import ChannelProperties, NtStatus, Operation, ScsiRequest, Srb, SrbStatus, Version, VstorPacket

INIT = [
    (Operation.BEGIN_INITIALIZATION, b""),
    (Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", Version.WIN8_1, 0)),
    (Operation.QUERY_PROPERTIES, b""),
    (Operation.END_INITIALIZATION, b""),
]


def ask(vsp: StorVsp, operation: int, body: bytes = b"", size: int = 64) -> VstorPacket:
    action = vsp.receive(VstorPacket(operation, 1, 0, body).pack(size), True)
    assert isinstance(action, Reply)
    answer = VstorPacket.parse(action.payload)
    assert answer.operation == Operation.COMPLETE_IO
    assert answer.flags == 0
    return answer


def ready() -> StorVsp:
    vsp = StorVsp()
    for operation, body in INIT:
        assert ask(vsp, operation, body).status == 0
    return vsp


def test_initialization() -> None:
    vsp = StorVsp(max_transfer=0x80000)
    assert ask(vsp, *INIT[0]).status == 0
    assert ask(vsp, *INIT[1]).status == 0
    properties = ChannelProperties.parse(ask(vsp, *INIT[2]).body)
    assert properties == ChannelProperties(0x80000, 0, 0)
    assert vsp.phase is Phase.END
    assert ask(vsp, *INIT[3]).status == 0
    assert vsp.ready
    assert vsp.version == Version.WIN8_1


@pytest.mark.parametrize("version", list(Version))
def test_versions_that_are_spoken(version: Version) -> None:
    vsp = StorVsp()
    ask(vsp, *INIT[0])
    assert ask(vsp, Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", version, 0)).status == 0
    assert vsp.version == version


def test_an_unknown_version_may_be_followed_by_another() -> None:
    vsp = StorVsp(versions=frozenset((Version.WIN8_1,)))
    ask(vsp, *INIT[0])
    for unknown in (Version.WIN10, 0x0700, 0):
        assert ask(vsp, Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", unknown, 0)).status == NtStatus.REVISION_MISMATCH
    assert ask(vsp, *INIT[1]).status == 0


def test_each_step_out_of_turn_is_refused_and_changes_nothing() -> None:
    vsp = StorVsp()
    for position in range(5):
        for index, (operation, body) in enumerate(INIT):
            if index != position:
                assert ask(vsp, operation, body).status == NtStatus.INVALID_DEVICE_STATE, (position, operation)
        if position < 4:
            request = VstorPacket(Operation.EXECUTE_SRB, 1, 0, ScsiRequest().pack()).pack(64)
            action = vsp.receive(request, True)
            assert isinstance(action, Reply)
            assert VstorPacket.parse(action.payload).status == NtStatus.INVALID_DEVICE_STATE
            assert ask(vsp, *INIT[position]).status == 0
    assert vsp.ready


def test_sub_channels_are_not_to_be_had() -> None:
    vsp = ready()
    assert ask(vsp, Operation.CREATE_SUB_CHANNELS, struct.pack("<H", 0)).status == 0
    assert ask(vsp, Operation.CREATE_SUB_CHANNELS, struct.pack("<H", 1)).status == NtStatus.INVALID_PARAMETER
    assert ask(StorVsp(), Operation.CREATE_SUB_CHANNELS).status == NtStatus.INVALID_DEVICE_STATE


def test_requests_and_resets_come_out() -> None:
    vsp = ready()
    request = ScsiRequest(target=1, lun=2, cdb_length=10, direction=1, transfer_length=512, cdb=b"\x28".ljust(20, b"\0"))
    action = vsp.receive(VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(64), True)
    assert isinstance(action, Srb)
    assert (action.lun, action.cdb[0], len(action.complete(SrbStatus.SUCCESS, 0, 512))) == (2, 0x28, 64)
    for operation in (Operation.RESET_BUS, Operation.RESET_ADAPTER):
        reset = vsp.receive(VstorPacket(operation).pack(64), True)
        assert isinstance(reset, Reset)
        assert reset.only is None
    one = vsp.receive(VstorPacket(Operation.RESET_LUN, 1, 0, request.pack()).pack(64), True)
    assert isinstance(one, Reset)
    assert one.only == (0, 1, 2)
    assert ask(vsp, Operation.FCHBA_DATA).status == NtStatus.INVALID_DEVICE_REQUEST


@pytest.mark.parametrize(
    ("payload", "completion"),
    [(bytes(11), True), (VstorPacket(99).pack(64), True), (VstorPacket(Operation.COMPLETE_IO).pack(64), True),
     (VstorPacket(Operation.EXECUTE_SRB).pack(40), True), (VstorPacket(Operation.RESET_BUS).pack(64), False)],
)  # fmt: skip
def test_what_no_driver_does(payload: bytes, completion: bool) -> None:
    with pytest.raises(ProtocolError):
        ready().receive(payload, completion)


def test_rescan_by_version() -> None:
    vsp = ready()
    assert vsp.rescan() == struct.pack("<III", Operation.ENUMERATE_BUS, 0, 0) + bytes(52)
    vsp.version = Version.WIN8
    assert len(vsp.rescan() or b"") == 48
    vsp.version = Version.WIN6
    assert vsp.rescan() is None
    assert StorVsp().rescan() is None


def test_saved_state() -> None:
    vsp = StorVsp()
    ask(vsp, *INIT[0])
    ask(vsp, *INIT[1])
    other = StorVsp()
    other.restore(vsp.save())
    assert (other.phase, other.version) == (Phase.PROPERTIES, Version.WIN8_1)
    with pytest.raises(ValueError, match="StorVSP"):
        other.restore(None)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=80), st.booleans()), max_size=12))
def test_any_bytes_end_in_an_action_or_a_protocol_error(packets: list[tuple[int, bytes, bool]]) -> None:
    vsp = ready()
    for operation, rest, completion in packets:
        payload = struct.pack("<I", operation) + rest
        try:
            action = vsp.receive(payload, completion)
        except ProtocolError:
            continue
        assert isinstance(action, Reply | Srb | Reset)
