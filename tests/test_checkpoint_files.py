"""A checkpoint is replaced as a whole or not at all, and a file with one changed bit is never loaded."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnn import checkpoint
from jaxnn.checkpoint import layout
from jaxnn.checkpoint.folders import NAME
from jaxnn.types import EPOCH_START, TrainState

TREE = {"w": np.arange(3, dtype=np.float32), "b": np.array([True, False])}
OTHER = {"w": np.ones(3, np.float32), "b": np.array([True, True])}


def state_of(step):
    return TrainState({"w": np.full(2, step, np.float32)}, (), (), np.int32(step), jax.random.key(0), np.int32(1))


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def unchanged(path):
    """The old file, alone in its folder, as it was."""
    assert names_in(path.parent) == [path.name]
    np.testing.assert_array_equal(checkpoint.load(path)["w"], TREE["w"])


@pytest.fixture
def saved(tmp_path):
    return Path(checkpoint.save(tmp_path / "a.safetensors", TREE))


# ---------------------------------------------------------------- every bit


def is_whole(content):
    try:
        layout.verify(io.BytesIO(content), len(content))
    except layout.Damaged:
        return False
    return True


def test_no_flipped_bit_goes_unseen(saved):
    content = saved.read_bytes()
    assert is_whole(content)
    assert len(content) < 2000
    undetected = []
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        undetected += [bit] if is_whole(bytes(changed)) else []
    assert undetected == []


def test_no_missing_or_additional_byte_goes_unseen(saved):
    content = saved.read_bytes()
    assert [stop for stop in range(len(content)) if is_whole(content[:stop])] == []
    assert not is_whole(content + b"\0")
    assert not is_whole(content[:-1] + content[-1:] * 2)


def edited(content, change, *, signed=True):
    """A file whose header was changed by a program that knows its digest."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    header["__metadata__"] = {"sha256": "0" * 64} | {k: v for k, v in header["__metadata__"].items() if k != "sha256"}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head = bytearray(len(text).to_bytes(8, "little") + text)
    if signed:
        at = 8 + len(layout.PREFIX)
        head[at : at + 64] = layout.hashlib.sha256(head).hexdigest().encode()
    return bytes(head) + content[8 + length :]


def told(field, **values):
    return lambda header: header[field].update(values)


W, B = "train_state/w", "train_state/b"
HOSTILE = {
    "a huge array": (told(W, shape=[2**60], data_offsets=[0, 2**62]), "array 'train_state/b' begins at 12"),
    "an array beyond the end": (told(B, shape=[2**60], data_offsets=[12, 12 + 2**60]), "truncated at"),
    "a shape that does not fit": (told(W, shape=[2**40]), "does not fill its bytes"),
    "a negative size": (told(W, shape=[-3]), "not whole numbers"),
    "a float size": (told(W, shape=[3.0]), "not whole numbers"),
    "a boolean size": (told(W, shape=[True, 3]), "not whole numbers"),
    "an empty array with a huge axis": (told(W, shape=[0, 2**62], data_offsets=[0, 0]), "array 'train_state/b' begins"),
    "an unknown dtype": (told(W, dtype="I4"), "unknown dtype 'I4'"),
    "a list for a dtype": (told(W, dtype=[]), "unknown dtype []"),
    "overlapping arrays": (told(B, data_offsets=[0, 2]), "begins at 0 where 2|begins at 0 where 12"),
    "a further field": (told(W, code="import os"), "needs dtype, shape and data_offsets"),
    "an array that is none": (lambda header: header.update({W: 3}), "needs dtype, shape and data_offsets"),
    "a number among the metadata": (told("__metadata__", format=1), "the metadata are not strings"),
    "no digests": (told("__metadata__", digests="{}"), "the digests are not those of its arrays"),
    "digests that are no JSON": (told("__metadata__", digests="{"), "the digests cannot be read"),
    "deep JSON": (told("__metadata__", digests="[" * 100_000), "the digests cannot be read"),
    "another format": (told("__metadata__", format="jaxnn checkpoint 2"), "has the format 'jaxnn checkpoint 2'"),
    "trees that are no JSON": (told("__metadata__", trees="x"), "the trees cannot be read"),
    "a tree that is a number": (told("__metadata__", trees='{"train_state": 3}'), "cannot be put together"),
    "an unknown container": (told("__metadata__", trees='{"train_state": {"eval": "1"}}'), "unknown container, 'eval'"),
    "a class to import": (
        told("__metadata__", trees='{"train_state": {"class": "os.system", "fields": {}}}'),
        "train_state is a os.system, a class that is not known here",
    ),
    "keys in a list": (told("__metadata__", keys="[]"), "the keys are not a dict"),
    "an array that is not there": (
        told("__metadata__", trees='{"train_state": {"leaf": "x"}}'),
        "cannot be put together",
    ),
    "a number in words": (
        told("__metadata__", trees='{"train_state": {"leaf": "x", "int": "3"}}'),
        "x is not a number",
    ),
    "an unknown kind of key": (told("__metadata__", keys='{"train_state/w": "x"}'), "'x'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_by_name(name, saved):
    change, words = HOSTILE[name]
    saved.write_bytes(edited(saved.read_bytes(), change))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        checkpoint.load(saved)
    assert any(word in str(error.value) for word in words.split("|"))
    assert str(saved) in str(error.value)


def test_an_unchanged_header_written_anew_is_whole(saved):
    """The editing above is right: what is refused there is what was changed."""
    saved.write_bytes(edited(saved.read_bytes(), lambda header: None))
    checkpoint.load(saved)


def test_what_is_damaged_is_said(saved):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    twice = (
        content[:8] + content[8 : 8 + length].replace(b'"train_state/b"', b'"train_state/w"', 1) + content[8 + length :]
    )
    for changed, words in {
        b"": "is damaged: truncated at 0 bytes",
        content[:100]: f"truncated at 100 bytes, and its header alone would take {length:,}",
        content[:-1]: f"truncated at {len(content) - 1:,} of {len(content):,} bytes",
        content + b"ab": "2 bytes follow the last array",
        content[:-1] + b"\1": "the digest of array 'train_state/b' differs",
        (2**60).to_bytes(8, "little") + content[8:]: "truncated at",
        content[:40] + b"x" + content[41:]: "the digest of the header differs",
        edited(content, lambda header: None, signed=False): "the digest of the header differs",
        twice: "the digest of the header differs",
        b"\2\0\0\0\0\0\0\0{}": "it does not begin as a checkpoint of jaxnn does",
    }.items():
        saved.write_bytes(changed)
        with pytest.raises(checkpoint.Damaged) as error:
            checkpoint.load(saved)
        assert words in str(error.value)
        assert str(saved) in str(error.value)


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    for read in (checkpoint.load, checkpoint.contents, checkpoint.read):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read(tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"is a folder; its newest checkpoint is checkpoint.latest"):
            read(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"is a folder: give the path of a file, or checkpoint.Keep"):
        checkpoint.save(tmp_path, TREE)
    with pytest.raises(FileNotFoundError, match="the folder does not exist: make it first"):
        checkpoint.save(tmp_path / "none" / "a.safetensors", TREE)


# ---------------------------------------------------------------- whole or not at all

CALLS = ("open", "write", "fsync", "replace", "unlink")


@pytest.fixture
def calls(monkeypatch):
    """The calls of the system while saving, in order; a fault may be planted at one of them."""
    made, faults = [], {}
    real = {name: getattr(os, name) for name in CALLS}

    def recorded(name):
        def call(*args, **kwargs):
            which = (name, sum(other == name for other, _ in made))
            made.append((name, args[0]))
            fault = faults.get(which)
            if fault and fault[0] == "before":
                raise fault[1]
            result = real[name](*args, **kwargs)
            if fault:
                raise fault[1]
            return result

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, recorded(name))
    return made, faults


def test_the_order_of_what_the_system_is_asked(tmp_path, calls):
    """The bytes are on the disk before the name is, and the name is before older files go."""
    made, _ = calls
    keep = checkpoint.Keep(tmp_path, last=1)
    checkpoint.save(keep, state_of(1))
    made.clear()
    path = checkpoint.save(keep, state_of(2))
    names = [name for name, _ in made]
    assert names == ["open", *["write"] * names.count("write"), "fsync", "replace", "open", "fsync", "unlink"]
    temporary, folder = made[0][1], made[names.index("replace") + 1][1]
    assert made[names.index("replace")][1] == temporary
    assert os.path.dirname(temporary) == folder == str(tmp_path)
    assert made[-1][1] == keep.path(1)
    assert names_in(tmp_path) == [os.path.basename(path)]


def test_what_was_written_is_read_back_before_it_replaces_anything(saved, monkeypatch):
    real = os.write

    def flips(file, piece):
        changed = bytearray(piece)
        changed[-1] ^= 1
        return real(file, changed)

    monkeypatch.setattr(os, "write", flips)
    with pytest.raises(checkpoint.Damaged, match="differs"):
        checkpoint.save(saved, OTHER)
    monkeypatch.undo()
    unchanged(saved)


STAGES = [("open", 0), ("write", 0), ("write", 1), ("write", 2), ("fsync", 0), ("replace", 0)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: "{} {}".format(*stage))
@pytest.mark.parametrize(
    "fault",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "no")],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_old_file_stays_whatever_happens(saved, calls, stage, fault, when):
    if (stage[0], when) == ("replace", "after"):
        return  # it is replaced: below
    calls[1][stage] = when, fault
    with pytest.raises(type(fault)) as error:
        checkpoint.save(saved, OTHER)
    if isinstance(fault, OSError):
        assert error.value.errno == fault.errno
        assert "the file was not saved" in str(error.value)
        assert error.value.filename == str(saved)
    unchanged(saved)


@pytest.mark.parametrize("stage", [("replace", 0), ("open", 1), ("fsync", 1)], ids=lambda stage: "{} {}".format(*stage))
def test_an_interruption_once_it_is_replaced_leaves_the_new_file(saved, calls, stage):
    calls[1][stage] = "after", KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, OTHER)
    assert names_in(saved.parent) == [saved.name]
    np.testing.assert_array_equal(checkpoint.load(saved)["w"], OTHER["w"])


def test_a_system_call_may_take_fewer_bytes_than_it_is_given(saved, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, piece: real(file, piece[:7]))
    checkpoint.save(saved, OTHER)
    monkeypatch.undo()
    np.testing.assert_array_equal(checkpoint.load(saved)["w"], OTHER["w"])


SLOW = """
import os, sys, time
import numpy as np
from jaxnn import checkpoint
def fsync(file):
    print("writing", flush=True)
    time.sleep(600)
os.fsync = fsync
checkpoint.save(sys.argv[1], {"w": np.zeros(10_000, np.float32)})
"""


def test_a_real_limit_of_the_system(saved):
    """The system takes 5,000 bytes of a file and then no more, as where a disk is full."""
    resource = pytest.importorskip("resource", reason="limits of Unix")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="the file was not saved") as error:
            checkpoint.save(saved, {"w": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    unchanged(saved)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_what_a_killed_process_leaves_is_removed_and_what_a_living_one_writes_is_not(saved):
    beside = saved.with_name("b.safetensors")
    with subprocess.Popen([sys.executable, "-c", SLOW, str(saved)], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "writing\n"
            (temporary,) = {*names_in(saved.parent)} - {saved.name}
            checkpoint.save(beside, OTHER)
            assert names_in(saved.parent) == [temporary, saved.name, beside.name]
        finally:
            writer.send_signal(signal.SIGKILL)
    assert temporary in names_in(saved.parent)
    assert os.fspath(checkpoint.latest(saved.parent)) in (str(saved), str(beside))
    np.testing.assert_array_equal(checkpoint.load(saved)["w"], TREE["w"])
    checkpoint.save(saved, OTHER)
    assert names_in(saved.parent) == [saved.name, beside.name]


def test_several_may_write_into_one_folder_at_once(tmp_path):
    keep = checkpoint.Keep(tmp_path, last=2)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda step: checkpoint.save(keep, state_of(step)), range(60)))
    assert checkpoint.latest(keep).path == keep.path(59)
    assert all(NAME.fullmatch(name) for name in names_in(tmp_path))


def test_other_files_are_not_taken_for_left_over_ones(saved):
    for name in (".jaxnn-x.tmp", "jaxnn-1-0123456789abcdef.tmp", ".jaxnn-1-0123456789abcdef.tmp~"):
        (saved.parent / name).write_text("mine")
    (saved.parent / ".jaxnn-1-0123456789abcdef.tmp").write_text("left over")
    checkpoint.save(saved, OTHER)
    assert len(names_in(saved.parent)) == 4


# ---------------------------------------------------------------- folders


def test_the_newest_are_kept(tmp_path):
    keep = checkpoint.Keep(tmp_path / "runs" / "one", last=2)
    assert checkpoint.latest(keep) == (None, {})
    for step in (5, 9, 10, 100):
        path = checkpoint.save(keep, state_of(step))
    assert names_in(keep.folder) == ["step_0000000010.safetensors", "step_0000000100.safetensors"]
    assert checkpoint.latest(keep.folder) == (path, {})
    checkpoint.save(keep, state_of(7))  # gone back: the newer ones are somebody's
    assert len(names_in(keep.folder)) == 3
    (tmp_path / "runs" / "one" / "step_x.safetensors").write_text("mine")
    checkpoint.save(checkpoint.Keep(keep.folder, last=1), state_of(200))
    assert names_in(keep.folder) == ["step_0000000200.safetensors", "step_x.safetensors"]
    everything = checkpoint.Keep(tmp_path / "all", last=None)
    for step in range(5):
        checkpoint.save(everything, state_of(step))
    assert len(names_in(everything.folder)) == 5


def test_the_latest_is_the_newest_that_is_whole_by_its_step(tmp_path):
    paths = [checkpoint.save(checkpoint.Keep(tmp_path, last=None), state_of(step)) for step in (30, 4, 20)]
    os.utime(paths[0], (1, 1))
    assert checkpoint.latest(tmp_path).path == paths[0]
    Path(paths[0]).write_bytes(Path(paths[0]).read_bytes()[:-1])
    (tmp_path / "other.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / "mine.txt").write_text("")
    found = checkpoint.latest(tmp_path)
    assert found.path == os.fspath(found) == paths[2]
    assert int(checkpoint.load(found).step) == checkpoint.contents(found).step == 20
    assert checkpoint.load(found).position is EPOCH_START
    assert found.passed_over[paths[0]].startswith("damaged: truncated at")
    assert "another program" in found.passed_over[str(tmp_path / "other.safetensors")]
    assert f"passed over {paths[0]}: damaged: truncated at" in str(found)
    for path in (paths[1], paths[2]):
        content = bytearray(Path(path).read_bytes())
        content[-1] ^= 128
        Path(path).write_bytes(content)
    none = checkpoint.latest(tmp_path)
    assert (none.path, len(none.passed_over)) == (None, 4)
    assert str(none).startswith("no whole checkpoint\n  passed over")
    with pytest.raises(FileNotFoundError, match="there is no whole checkpoint"):
        checkpoint.load(none)


def test_a_file_for_a_folder(saved):
    with pytest.raises(NotADirectoryError, match=r"is a file; give it to checkpoint.load itself"):
        checkpoint.latest(saved)
    with pytest.raises(ValueError, match="is a file: give the path of a folder"):
        checkpoint.Keep(saved)


SETTINGS = {
    "a number": (3, {}, TypeError, "folder must be the path of a folder, got 3"),
    "nothing": ("", {}, TypeError, "folder must be the path of a folder, got ''"),
    "every 0": ("a", {"every": 0}, ValueError, "Keep: every must be at least 1, got 0"),
    "every half": ("a", {"every": 0.5}, TypeError, "Keep: every must be a whole number, got 0.5"),
    "last 0": ("a", {"last": 0}, ValueError, "Keep: last must be at least 1, got 0"),
    "last True": ("a", {"last": True}, TypeError, "Keep: last must be a whole number, got True"),
    "by position": (("a", 3), {}, TypeError, "give every=3"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_keep_are_checked(name):
    first, settings, kind, words = SETTINGS[name]
    with pytest.raises(kind) as error:
        checkpoint.Keep(*(first if isinstance(first, tuple) else (first,)), **settings)
    assert words in str(error.value)


def test_keep_is_a_value():
    assert checkpoint.Keep("a") == checkpoint.Keep(Path("a"), last=3)
    assert repr(checkpoint.Keep("a", every=5)) == "Keep('a', every=5)"
    assert checkpoint.Keep("a").path(12) == os.path.join("a", "step_0000000012.safetensors")
