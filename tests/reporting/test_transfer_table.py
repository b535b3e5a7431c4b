import csv
import io
import json

import pytest

from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import measuring
from simmatch_tf.reporting import transfer_table

STRENGTH = {
    "strength": 0.0316,
    "at_the_edge": False,
    "converged": True,
    "iterations": 88,
}


def outcome(model="mine", dataset="cifar10", score=0.9371, **values):
    return measuring.Outcome(
        **{
            "model": model,
            "epochs": "400",
            "dataset": dataset,
            "protocol": "linear",
            "metric": "top1",
            "score": score,
            "train_images": 50_000,
            "validation_images": 10_000,
            "validation": "held out",
            "test_images": 10_000,
            "seconds": 61.4,
            "details": STRENGTH,
            **values,
        }
    )


def table(*outcomes):
    return transfer_table.Table(outcomes)


def test_published_figures():
    means = [81.7, 77.1, 77.0, 82.1, 82.1]
    for (_, _, figures), mean in zip(
        transfer_table.PUBLISHED, means, strict=True
    ):
        assert round(sum(figures) / 7, 1) == pytest.approx(mean, abs=0.051)


def test_methods_beside_the_published_ones():
    methods_table = table(
        outcome(),
        outcome("other", score=0.5),
        outcome(dataset="oxford_iiit_pet", metric="mean_per_class", score=0.9),
        outcome("other", "oxford_iiit_pet", 0.7, metric="mean_per_class"),
    )
    cells = methods_table.cells()
    assert cells[0] == ["Method", "Epochs", "CIFAR-10", "Pets", "Mean"]
    assert cells[1] == [
        "Supervised, published, ResNet-50", "-", "93.6", "91.5", "92.5",
    ]  # fmt: skip
    assert cells[5][0].startswith("SimMatch (10%), pub")
    assert cells[6] == ["mine", "400", "93.71", "90.00", "91.86"]
    assert cells[7] == ["other", "400", "50.00", "70.00", "60.00"]
    assert (
        "for Pets, the mean of the classes' accuracies" in methods_table.note()
    )
    rows = list(csv.DictReader(io.StringIO(methods_table.csv())))
    assert rows[0]["published"] == "yes" and rows[0]["cifar10"] == "93.6000"
    assert rows[5]["mean"] == "91.8550" and rows[5]["published"] == "no"
    content = json.loads(methods_table.json())
    assert content["outcomes"][0]["score"] == 0.9371
    assert content["published"][0]["scores"]["cifar10"] == pytest.approx(0.936)


def test_datasets_without_published_figures():
    digits_table = table(outcome(dataset="digits"))
    head, own = digits_table.cells()
    assert head == ["Method", "Epochs", "digits"] and own[0] == "mine"
    assert json.loads(digits_table.json())["published"] == []
    mixed = table(outcome(), outcome(dataset="digits"))
    assert mixed.cells()[1][2:] == ["93.6", "–", "–"]
    other = table(outcome(dataset="cifar10:3.0.2"))
    assert other.cells()[0][2] == "CIFAR-10" and len(other.cells()) == 7
    # The paper's figures are of linear evaluation.
    how = {"neighbors": 20, "temperature": 0.07}
    knn = table(outcome(protocol="knn", details=how))
    assert len(knn.cells()) == 2


def test_lines_on_each_figure():
    text = transfer_table.line(outcome())
    assert text == (
        "mine on cifar10: 93.71 % top-1 of 10,000 test images, 95 % interval "
        "[93.2, 94.2]; strength "
        "0.0316, converged after 88 iterations; 50,000 training images, 10,000 "
        "of them (held out) to choose by; 61 s"
    )
    details = {**STRENGTH, "converged": False, "at_the_edge": True}
    text = transfer_table.line(outcome(details=details))
    assert "0.0316, the last of its range, NOT converged after 88" in text
    details = {"rate": 0.1, "decay": 1e-5, "steps": 20_000}
    text = transfer_table.line(outcome(protocol="finetune", details=details))
    assert "rate 0.1, decay 1e-05, 20,000 steps" in text


def test_markdown_escapes_names(tmp_path):
    named_table = table(outcome("a|b <i>", dataset="digits"))
    text = named_table.markdown()
    assert "| a\\|b &lt;i> | 400 | 93.71 |" in text
    assert "\n* a\\|b &lt;i> on digits: 93.71 % top-1" in text
    names = transfer_table.write(named_table, tmp_path, "linear")
    assert names == ["linear.md", "linear.csv", "linear.json"]
    assert (tmp_path / "linear.md").read_text() == text + "\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    with pytest.raises(InputError, match="linear.md: cannot be written"):
        transfer_table.write(named_table, tmp_path / "no", "linear")
