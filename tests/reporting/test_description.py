import dataclasses
import subprocess
import sys

import pytest

from simmatch_tf.networks import cost, network
from simmatch_tf.reporting import description
from simmatch_tf.training import description as description_lib

ROWS = (
    cost.Row("conv1", (4, 4, 64), 1_728, 55_296),
    cost.Row("features", (64,), 0, 0),
    cost.Row("classifier", (10,), 650, 1_280, "classifier"),
    cost.Row("projection_head", (8,), 4_680, 9_216, "projection_head"),
)
RUN = description_lib.Description(
    algorithm="simmatch",
    form="teacher",
    dataset="cifar10",
    backbone="custom",
    image_shape=(4, 4, 3),
    num_classes=10,
    slots=4_000,
    rows=ROWS,
    batch_size=64,
    unlabeled_batch=448,
    student_views=512,
    forward_views=512,
    memory=(
        description_lib.Memory("weights", 2**20 * 3),
        description_lib.Memory("Q_f", 2**20 * 2, (4_000, 8)),
        description_lib.Memory("rest", 2**18),
    ),
    keep=3,
)


def paragraphs(**changes):
    text = description.table(dataclasses.replace(RUN, **changes))
    return text.split("\n\n")


def joined(paragraph):
    return " ".join(paragraph.split())


def test_the_whole_text():
    head, layers, rule, parts, step, memory, beside = paragraphs()
    assert joined(head) == (
        "simmatch (teacher form) on cifar10: backbone custom, images 4×4×3, 10 "
        "classes, 4,000 labeled images"
    )
    assert layers.splitlines() == [
        "layer            output  parameters  MFLOPs",
        "---------------  ------  ----------  ------",
        "conv1            4×4×64       1,728     0.1",
        "features             64           0     0.0",
        "classifier           10         650     0.0",
        "projection_head       8       4,680     0.0",
    ]
    assert "a multiply-add counts as two" in joined(rule)
    assert [line.split()[-5:] for line in parts.splitlines()[2:]] == [
        ["1,728", "(0.0", "M)", "55.3", "k"],
        ["2,378", "(0.0", "M)", "56.6", "k"],
        ["7,058", "(0.0", "M)", "65.8", "k"],
    ]
    # 3 · 512 + 512 forward passes of 65,792 FLOPs.
    assert joined(step) == (
        "A training step (B = 64, μB = 448): 135 MFLOPs on all devices. That "
        "is 2,048 × forward: 3 × 512 views of the student (forward, and "
        "backward as twice that), 1 × 512 of the teacher."
    )
    assert memory.splitlines() == [
        "memory                             MiB",
        "-------------------------------  -----",
        "weights, BatchNorm's statistics   3.00",
        "Q_f [4000, 8]                     2.00",
        "rest                              0.25",
        "sum, as in a checkpoint on disk   5.25",
        "the 3 checkpoints kept           15.75",
    ]
    assert "gradients" in beside


def test_without_a_teacher_or_a_projection_head():
    head, _, _, parts, step, *_ = paragraphs(
        algorithm="supervised",
        form=None,
        rows=ROWS[:3],
        unlabeled_batch=0,
        student_views=64,
        forward_views=0,
    )
    assert head.startswith("supervised on cifar10:")
    assert len(parts.splitlines()) == 4 and "projection" not in parts
    # 3 · 64 forward passes of 56,576 FLOPs.
    assert joined(step) == (
        "A training step (B = 64): 10.9 MFLOPs on all devices. That is 192 × "
        "forward: 3 × 64 views of the student (forward, and backward as twice "
        "that)."
    )


def test_a_step_of_the_users_own():
    step = paragraphs(student_views=None, forward_views=None)[4]
    assert "known to its algorithm alone" in joined(step)
    assert "FLOPs" not in step


def test_work_that_is_unknown_is_marked():
    rows = (
        dataclasses.replace(ROWS[0], uncounted=("CudnnRNNV3",)),
        *ROWS[1:],
    )
    _, layers, rule, parts, step, *_ = paragraphs(rows=rows)
    assert [line.endswith("+") for line in layers.splitlines()] == [
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert "(CudnnRNNV3)" in rule
    # The unknown is in each of the sums.
    assert all(line.endswith("k+") for line in parts.splitlines()[2:])
    assert "135 MFLOPs+" in step
    assert "+" not in "".join(paragraphs())


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.00 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (4_089_184_256, "4.09 G"),
        (123_400_000_000_000, "123 T"),
    ],
)
def test_prefixes(flops, text):
    rows = (cost.Row("conv1", (1,), 0, flops),)
    parts = paragraphs(rows=rows)[3]
    assert parts.splitlines()[-1].endswith("M)  " + text.rjust(14))


def test_sizes_that_are_unknown():
    rows = (cost.Row("conv1", (None, 3), 0, 0),)
    assert "?×3" in paragraphs(rows=rows)[1]


@pytest.mark.parametrize(
    ("backbone", "shape", "classes", "counts"),
    [
        (
            "resnet50",
            (224, 224, 3),
            1000,
            {"23,508,032": "23.5", "25,557,032": "25.6", "30,015,656": "30.0"},
        ),
        ("wrn_28_2", (32, 32, 3), 10, {"1,466,320": "1.5", "1,467,610": "1.5"}),
    ],
)
def test_our_networks(backbone, shape, classes, counts):
    model = network.build(
        backbone,
        image_shape=shape,
        num_classes=classes,
        projection_dim=128,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    rows = tuple(cost.rows(model))
    text = description.table(dataclasses.replace(RUN, rows=rows))
    for count, millions in counts.items():
        assert f"  {count}  ({millions} M)  " in text
    assert max(map(len, text.splitlines())) <= 80


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from simmatch_tf.reporting import description; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
