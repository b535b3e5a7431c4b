from simmatch_tf.modules import loss_scale


def test_halves_on_overflow_and_doubles_after_long_peace():
    ours = loss_scale.LossScale()
    assert float(ours.scale) == 2.0**15
    ours.update(False)
    assert float(ours.scale) == 2.0**14 and int(ours.good) == 0
    ours.good.assign(loss_scale.GROWS_AFTER - 2)
    ours.update(True)
    assert float(ours.scale) == 2.0**14
    ours.update(True)
    assert float(ours.scale) == 2.0**15 and int(ours.good) == 0


def test_stays_in_its_range():
    ours = loss_scale.LossScale()
    ours.scale.assign(1.0)
    assert not ours.above_one()
    ours.update(False)
    assert float(ours.scale) == 1.0
    ours.scale.assign(loss_scale.LARGEST)
    ours.good.assign(loss_scale.GROWS_AFTER)
    ours.update(True)
    assert float(ours.scale) == loss_scale.LARGEST
