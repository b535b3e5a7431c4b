import math
import subprocess
import sys

import tensorflow as tf

from simmatch_tf.reporting import scalars
from tests.reporting import written


def test_what_tensorflow_writes(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        for step in (2, 4):
            tf.summary.scalar("loss/total", step / 2, step=step)
        tf.summary.text("flags", "--x", step=2)
        tf.summary.histogram("weights", [1.0, 2.0], step=2)
    writer.close()
    assert scalars.read(tmp_path) == {"loss/total": {2: 1.0, 4: 2.0}}


def test_what_a_resume_did_again_replaces_what_was_undone(tmp_path):
    """Killed at step 40, gone on from 20: loss/u was not written again."""
    first = {"loss/s": {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}}
    first["loss/u"] = {20: 7.0, 30: 8.0}
    written.events(tmp_path, first, began=5)
    # The second of the names decides, not their order as text.
    written.events(tmp_path, {"loss/s": {30: 9.0}}, began=12)
    assert scalars.read(tmp_path) == {
        "loss/s": {10: 1.0, 20: 2.0, 30: 9.0},
        "loss/u": {20: 7.0},
    }


def test_a_file_without_scalars_undoes_nothing(tmp_path):
    written.events(tmp_path, {"loss/s": {10: 1.0}}, began=1)
    written.events(tmp_path, {}, began=2)
    assert scalars.read(tmp_path) == {"loss/s": {10: 1.0}}


def test_a_file_that_is_cut_short_or_changed(tmp_path):
    path = written.events(tmp_path, {"loss/s": {1: 1.0, 2: 2.0, 3: 3.0}})
    whole = path.read_bytes()
    for end in (len(whole) - 1, len(whole) - 12):
        path.write_bytes(whole[:end])
        assert scalars.read(tmp_path) == {"loss/s": {1: 1.0, 2: 2.0}}
    broken = bytearray(whole)
    broken[-8] ^= 255  # in the last record
    path.write_bytes(broken)
    assert scalars.read(tmp_path) == {"loss/s": {1: 1.0, 2: 2.0}}
    path.write_bytes(b"")
    assert scalars.read(tmp_path) == {}
    assert scalars.read(tmp_path / "none") == {}


def test_damage_is_told(tmp_path, caplog):
    path = written.events(tmp_path, {"loss/s": {i: 1.0 for i in range(9)}})
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-5])  # still being written
    assert len(scalars.read(tmp_path)["loss/s"]) == 8
    assert not caplog.records
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert 0 < len(scalars.read(tmp_path)["loss/s"]) < 8
    assert f"{path}: is damaged; curves end there" in caplog.text


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    written.events(tmp_path, {"loss/s": {1: math.nan, 2: math.inf}})
    found = scalars.read(tmp_path)["loss/s"]
    assert math.isnan(found[1]) and found[2] == math.inf


def test_tensorflow_is_not_imported(tmp_path):
    written.events(tmp_path, written.CURVES)
    code = (
        "import pathlib, sys; from simmatch_tf.reporting import scalars; "
        f"assert scalars.read(pathlib.Path({str(tmp_path)!r})); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
