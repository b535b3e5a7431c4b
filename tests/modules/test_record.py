import numpy as np

from simmatch_tf.modules import record


def test_keeps_the_first_of_equal_scores():
    kept = record.Record()
    kept.keep_best("ema", 0.5, 0.4, 10)
    kept.keep_best("ema", 0.5, 0.9, 20)
    np.testing.assert_allclose(kept.best["ema"], [0.5, 0.4, 10])
    kept.keep_best("ema", 0.6, 0.3, 30)
    np.testing.assert_allclose(kept.best["ema"], [0.6, 0.3, 30])
    np.testing.assert_allclose(kept.best["student"], [-1, -1, -1])


def test_keeps_the_loss():
    kept = record.Record()
    kept.keep_loss(1.25)
    assert float(kept.loss) == 1.25
