import json

import pytest

from simmatch_tf.serving import card

MEASURED = {"top1": 0.5, "top5": 1.0, "scored_on": "test", "images": 20}


def evaluation(**changes):
    record = {"top1": 0.5, "top5": 1.0, "calibration_error": 0.2}
    report = {"step": 6, "scored_on": "test", "test_images": 20, "ema": record}
    return json.dumps({**report, **changes})


@pytest.mark.parametrize("known", [MEASURED, None])
def test_what_evaluate_measured_on_changed_images_is_not_taken(tmp_path, known):
    path = tmp_path / "evaluation.json"
    assert card.evaluated(known, path, "ema", 6) == known
    path.write_text(evaluation())
    assert card.evaluated(known, path, "ema", 6) == {
        **MEASURED,
        "calibration_error": 0.2,
    }
    for changes in (
        {"images_changed": "15 are changed (test/a/0.png, …)"},
        {"step": 7},
    ):
        path.write_text(evaluation(**changes))
        assert card.evaluated(known, path, "ema", 6) == known
