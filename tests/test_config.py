"""Flags of a run: values, rules between two of them, recipes."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import preflight
from simmatch_tf.flags import command
from simmatch_tf.flags.errors import InputError

Config = config_lib.Config
GOOD = {"labels": 40, "steps": 10}
ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_defaults_are_the_published_cifar_settings():
    c = Config(**GOOD)
    assert (c.batch_size, c.unlabeled_ratio, c.learning_rate) == (64, 7, 0.03)
    assert (c.threshold, c.temperature, c.alpha) == (0.95, 0.1, 0.9)
    assert (c.lambda_u, c.lambda_in, c.da_window) == (1.0, 1.0, 32)
    assert (c.targets_from, c.memory_momentum, c.ema_momentum) == (
        "student",
        0.7,
        0.999,
    )
    assert (c.weight_decay, c.weight_decay_on) == (5e-4, "kernels")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, r"--alpha=1.5: must be in \[0, 1\]"),
        ({"alpha": -0.1}, r"--alpha=-0.1: must be in \[0, 1\]"),
        ({"alpha": float("nan")}, r"--alpha=nan: must be in \[0, 1\]"),
        ({"threshold": 1.01}, r"--threshold=1.01: must be in \[0, 1\]"),
        ({"temperature": 0.001}, r"=0.001: must be in \[0.005, 10\]"),
        ({"temperature": 11}, r"=11.0: must be in \[0.005, 10\]"),
        ({"labels": 0}, "--labels=0: must be at least 1"),
        ({"labels": 45}, "--labels=45: not divisible by the 10 classes of dig"),
        ({"labels": 1410}, "--labels=1410: digits has 1400 training images"),
        (
            {"labels": None},
            "--labels is missing: give exactly one of --labels, ",
        ),
        (
            {"label_fraction": 0.1},
            "--labels=40 and --label_fraction=0.1: give exactly one of",
        ),
        (
            {"labeled_list": "x", "split_file": "y"},
            "--labels=40 and --labeled_list=x and --split_file=y: give exact",
        ),
        (
            {
                "labels": None,
                "split_file": "y",
                "validation_fraction": 0.1,
            },
            "--validation_fraction=0.1: --split_file brings its own",
        ),
        (
            {"labels": None, "labeled_list": "imagenet2012_subset/1pct"},
            "is for --dataset=imagenet2012, not digits",
        ),
        (
            {"dataset": "folder"},
            "--data_dir is missing: name the folder of the",
        ),
        (
            {"data_dir": "x"},
            "--data_dir=x: is for --dataset=folder, not digits",
        ),
        ({"data_dir": " "}, "--data_dir=' ': names no folder"),
        (
            {"image_size": 64, "eval_resize": 32},
            "--eval_resize=32: must be at least --image_size=64",
        ),
        (
            {"backbone": "resnet50", "stem_stride": 2},
            "--stem_stride=2: is for --backbone=wrn_28_2",
        ),
        (
            {"pseudo_labels": "soft"},
            "--pseudo_labels=soft: is for --algorithm=fixmatch, not simmatch",
        ),
        (
            {"algorithm": "supervised", "align": False},
            "--noalign: is for --algorithm=.*fixmatch or .*simmatch.*, not sup",
        ),
        (
            {"algorithm": "fixmatch", "scale_instances": False},
            "--noscale_instances: is for --algorithm=simmatch, not fixmatch",
        ),
        (
            {"algorithm": "fixmatch", "memory_placement": "sharded"},
            "--memory_placement=sharded: is for --algorithm=simmatch",
        ),
        (
            {"targets_from": "teacher", "weak_forward": "separate"},
            "--weak_forward=separate: is for --targets_from=student",
        ),
        (
            {"strong": "keras_cv", "views_on": "device"},
            "--views_on=device and --strong=keras_cv",
        ),
        (
            {"strong": "keras_cv", "data_service": "grpc://a:1"},
            "--data_service=grpc://a:1 and --strong=keras_cv",
        ),
        (
            {"data_service": "localhost:5050"},
            "--data_service=localhost:5050: must be grpc://HOST:PORT",
        ),
        ({"data_service": "grpc://a"}, "=grpc://a: must be grpc://HOST:PORT"),
        ({"data_service": "grpc://a:0"}, "must be grpc://HOST:PORT"),
        ({"strong": "weak"}, "--strong=weak is unknown"),
        ({"crop_area": 0.0}, r"--crop_area=0.0: must be in \[0.01, 1\]"),
        ({"on_bad_image": "x"}, "--on_bad_image=x is unknown"),
        ({"on_bad_image": "skip"}, "--on_bad_image=skip: is for --dataset=fol"),
        ({"dataset": "cifar10:3.0.2", "labels": 45}, "not divisible by the 10"),
        ({"labels": None, "label_fraction": 0.0}, "must be in"),
        ({"epochs": 1.0}, "--steps=10 and --epochs=1.0: give exactly one"),
        (
            {"steps": None},
            "--steps is missing: give --steps, --epochs or --minutes",
        ),
        ({"steps": None, "epochs": 0.0}, "--epochs=0.0: must be at least"),
        (
            {"minutes": 5.0},
            "--steps=10 and --minutes=5.0: give exactly one of --steps, --epoc",
        ),
        ({"steps": None, "minutes": 0.0}, "--minutes=0.0: must be in"),
        (
            {"measured_steps": 5},
            "--measured_steps=5: is the length of a run of --minutes, which is",
        ),
        (
            {"extended_steps": 50},
            "--extended_steps=50: is for --schedule=cooldown, not cosine_7_16",
        ),
        (
            {"cooldown": 0.5},
            "--cooldown=0.5: is for --schedule=cooldown, not cosine_7_16; leav",
        ),
        (
            {"schedule": "cooldown", "warmup_steps": 9},
            "--warmup_steps=9 and --cooldown=0.2: of --steps=10 the last 2 are",
        ),
        (
            {"schedule": "cooldown", "extended_steps": 3, "warmup_steps": 3},
            "--warmup_steps=3: must be below --extended_steps=3",
        ),
        ({"warmup_steps": 1, "warmup_epochs": 1.0}, "give at most one"),
        ({"warmup_steps": 10}, "--warmup_steps=10: must be below --steps=10"),
        (
            {"backbone": "vgg"},
            "--backbone=vgg is unknown; known: ",
        ),
        ({"backbone": "wrn_12_1"}, "the depth must be 6n . 4"),
        ({"targets_from": "students"}, "--targets_from=students is unknown"),
        ({"image_size": 4}, r"--image_size=4: must be in \[8, 1024\]"),
        (
            {"dataset": "custom", "image_size": 16},
            "--image_size=16: images given from Python keep their own size",
        ),
        (
            {"init_from": "imagenet"},
            "--init_from=imagenet and --backbone=wrn_28_2: there are no "
            "published weights of this network; those of Keras App",
        ),
        (
            {"init_from": "imagenet", "backbone": "keras_cv:resnet18"},
            "of this network; KerasCV has some for resnet50, resnet50_v2, ",
        ),
        (
            {"init_from": "imagenet", "backbone": "keras_applications:ResNet5"},
            "--backbone=keras_applications:ResNet5 is unknown; did you mean",
        ),
        ({"workdir": " "}, "--workdir=' ': names no folder"),
        ({"steps": 1.5}, "--steps=1.5: must be a whole number"),
        ({"alpha": "x"}, "--alpha='x': must be a number"),
        ({"learning_rate": float("inf")}, "--learning_rate=inf: must be in"),
        (
            {"randaugment_low": 0.9, "randaugment_high": 0.1},
            "--randaugment_low=0.9: must not be above",
        ),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(InputError, match=message):
        Config(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "Digits"},
            "--dataset=Digits is unknown .* did you mean dig",
        ),
        (
            {"dataset": "folder", "data_dir": "/no/such"},
            "--data_dir=/no/such: no such folder",
        ),
        (
            {"dataset": "cifar10", "tfds_manual_dir": "/no/such"},
            "--tfds_manual_dir=/no/such: no such folder",
        ),
        (
            {"labels": None, "labeled_list": "/no/such"},
            "--labeled_list=/no/such: no such file",
        ),
        (
            {"labels": None, "split_file": "/no/such"},
            "--split_file=/no/such: no such file",
        ),
        (
            {"init_from": "/no/such.keras"},
            "--init_from=/no/such.keras: no such file or folder",
        ),
    ],
)
def test_what_is_not_there_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        preflight.check_available(Config(**{**GOOD, **changes}))


def test_published_lists_stand_for_shares_of_imagenet():
    c = Config(dataset="imagenet2012", label_fraction=0.01, steps=1)
    assert c.published_list() == "imagenet2012_subset/1pct"
    versioned = dataclasses.replace(c, dataset="imagenet2012:5.1.0")
    assert versioned.published_list() == "imagenet2012_subset/1pct"
    assert dataclasses.replace(c, label_fraction=0.02).published_list() is None
    assert Config(**GOOD).published_list() is None


def test_another_keras_backend_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND=jax: must be tensorfl"):
        preflight.check_available(Config(**GOOD))


def test_epochs_become_steps():
    c = Config(labels=40, epochs=2.5, warmup_epochs=0.5, batch_size=10)
    resolved = c.with_durations(1400)  # 1,400 // 70 = 20 steps an epoch
    assert (resolved.steps, resolved.warmup_steps) == (50, 10)
    assert resolved.epochs is None and resolved.warmup_epochs is None
    assert Config(**GOOD).with_durations(5).steps == 10
    with pytest.raises(InputError, match="an epoch has no step: 60 unlabeled"):
        c.with_durations(60)
    long = dataclasses.replace(c, warmup_epochs=2.5)
    # Named as it was given, not as what it was turned into.
    with pytest.raises(
        InputError, match="--warmup_epochs=2.5: is 50 steps, bu"
    ):
        long.with_durations(1400)


def test_minutes_become_steps():
    c = Config(labels=40, minutes=5)
    assert (c.minutes, c.eval_every, c.checkpoint_every) == (5.0, None, None)
    assert c.length() is None
    with pytest.raises(
        InputError, match="--minutes=5: only a run that trains measures how m"
    ):
        c.with_durations(1400)
    # Intervals that were not measured are an eighth of the run.
    resolved = dataclasses.replace(c, measured_steps=900).with_durations(1400)
    assert (resolved.steps, resolved.eval_every) == (900, 113)
    assert resolved.minutes is resolved.measured_steps is None
    given = Config(labels=40, minutes=5, measured_steps=900, eval_every=7)
    assert given.with_durations(1400).eval_every == 7
    # Those of a run of steps are as they always were.
    c = Config(**GOOD)
    assert (c.eval_every, c.checkpoint_every) == (500, 500)
    assert "--eval_every=500\n" in c.to_flagfile()


def test_nothing_before_a_cooldown_depends_on_the_length():
    short, long = (
        Config(labels=40, schedule="cooldown", steps=n).with_durations(1400)
        for n in (1000, 100_000)
    )
    assert (short.cooldown_steps(), long.cooldown_steps()) == (200, 20_000)
    names = ("eval_every", "checkpoint_every", "picture_every", "warmup_steps")
    for name in names:
        assert getattr(short, name) == getattr(long, name)
    assert Config(**GOOD).cooldown_steps() == 0
    # A longer run never begins its cool-down earlier.
    starts = [n - long.cooldown_steps(n) for n in range(1, 400)]
    assert starts == sorted(starts)
    # An extended run is described by its flags.
    c = Config(labels=40, schedule="cooldown", epochs=2, extended_steps=70)
    assert c.with_durations(1400).steps == c.length() == 70


def test_minutes_replace_a_recipe_s_steps(tmp_path):
    path = tmp_path / "run.cfg"
    path.write_text("--labels=40\n--steps=9\n")
    c = Config.from_argv(["x", f"--flagfile={path}", "--minutes=2"])
    assert (c.steps, c.minutes) == (None, 2.0)
    # A run's own flagfile has both, and other minutes are measured anew.
    path.write_text("--labels=40\n--minutes=2\n--measured_steps=9\n")
    c = Config.from_argv(["x", f"--flagfile={path}"])
    assert (c.minutes, c.length()) == (2.0, 9)
    c = Config.from_argv(["x", f"--flagfile={path}", "--minutes=3"])
    assert (c.minutes, c.length()) == (3.0, None)
    c = Config.from_argv(["x", f"--flagfile={path}", "--steps=4"])
    assert (c.minutes, c.length()) == (None, 4)


def test_a_run_s_flagfile_starts_the_same_run(tmp_path):
    c = Config(
        **GOOD,
        ema_warmup=True,
        unlabeled_includes_labeled=False,
        workdir="x y",
        learning_rate=1e-7,
    )
    path = tmp_path / "flags.cfg"
    path.write_text(c.to_flagfile())
    assert Config.from_flagfile(path) == c
    assert c.differences(dataclasses.replace(c, alpha=0.8, keep=9)) == {
        "alpha": (0.9, 0.8, False),
        "keep": (3, 9, True),
    }


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda p: p.name
)
def test_every_recipe_is_accepted_and_says_what_it_is(path):
    text = path.read_text()
    assert text.startswith("#")
    if path.name.startswith("base_"):
        return
    own = path.stem.startswith("folder")
    more = ["--data_dir=a/x/"] if own else []
    config = Config.from_argv(["x", f"--flagfile={path}", *more])
    assert config.workdir == f"runs/{path.stem}{'-x' * own}"
    for word in ("python -m simmatch_tf.train", f"configs/{path.name}"):
        assert word in text.split("\n--")[0]


def test_cifar10_40_has_the_published_settings():
    c = Config.from_flagfile("configs/cifar10_40.cfg")
    wanted = {
        "dataset": "cifar10",
        "labels": 40,
        "backbone": "wrn_28_2",
        "batch_norm_momentum": None,  # the published 0.999
        "targets_from": "student",
        "batch_size": 64,
        "unlabeled_ratio": 7,
        "steps": 2**20,
        "schedule": "cosine_7_16",
        "learning_rate": 0.03,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "weight_decay_on": "kernels",
        "lambda_u": 1.0,
        "lambda_in": 1.0,
        "threshold": 0.95,
        "temperature": 0.1,
        "alpha": 0.9,
        "da_window": 32,
        "memory_momentum": 0.7,
        "ema_momentum": 0.999,
        "ema_warmup": False,
        "weak": "flip_crop",
        "strong": "randaugment",
        "unlabeled_includes_labeled": True,
    }
    assert {name: getattr(c, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("cifar10_250", ("cifar10", 250, "wrn_28_2", 5e-4, 1)),
        ("cifar10_4000", ("cifar10", 4000, "wrn_28_2", 5e-4, 1)),
        ("cifar100_400", ("cifar100", 400, "wrn_28_8", 1e-3, 1)),
        ("cifar100_2500", ("cifar100", 2500, "wrn_28_8", 1e-3, 1)),
        ("cifar100_10000", ("cifar100", 10000, "wrn_28_8", 1e-3, 1)),
        ("svhn_40", ("svhn_cropped", 40, "wrn_28_2", 5e-4, 1)),
        ("stl10_40", ("stl10", 40, "wrn_28_2", 5e-4, 2)),
    ],
)
def test_its_relatives_differ_in_this_alone(recipe, wanted):
    c = Config.from_flagfile(f"configs/{recipe}.cfg")
    base = Config.from_flagfile("configs/cifar10_40.cfg")
    assert wanted == (
        c.dataset,
        c.labels,
        c.backbone,
        c.weight_decay,
        c.stem_stride,
    )
    assert set(base.differences(c)) <= {
        "dataset",
        "labels",
        "backbone",
        "weight_decay",
        "stem_stride",
        "workdir",
    }


def test_imagenet_10pct_has_the_published_settings():
    c = Config.from_flagfile("configs/imagenet_10pct.cfg")
    wanted = {
        "dataset": "imagenet2012",
        "label_fraction": 0.1,
        "backbone": "resnet50",
        "image_size": 224,
        "targets_from": "teacher",
        "batch_size": 64,
        "unlabeled_ratio": 5,
        "epochs": 400.0,
        "warmup_epochs": 5.0,
        "schedule": "half_cosine",
        "learning_rate": 0.03,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "weight_decay_on": "all",
        "lambda_u": 10.0,
        "lambda_in": 5.0,
        "threshold": 0.7,
        "temperature": 0.1,
        "alpha": 0.9,
        "da_window": 256,
        "ema_momentum": 0.999,
        "weak": "resized_crop",
        "strong": "moco",
        "eval_resize": 256,
        "unlabeled_includes_labeled": False,
    }
    assert {name: getattr(c, name) for name in wanted} == wanted
    # One pass over the unlabeled images.
    assert c.matching_start_steps == (1_281_167 - 128_116) // (64 * 5)
    less = Config.from_flagfile("configs/imagenet_1pct.cfg")
    assert less.label_fraction == 0.01
    assert less.matching_start_steps == (1_281_167 - 12_811) // (64 * 5)
    assert set(c.differences(less)) == {
        "label_fraction",
        "matching_start_steps",
        "eval_every",
        "checkpoint_every",
        "workdir",
    }


def test_importing_the_package_is_light():
    code = (
        "import sys, simmatch_tf; simmatch_tf.Config; "
        "assert 'tensorflow' not in sys.modules; print(dir(simmatch_tf))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert "'fit'" in process.stdout, process.stderr


def test_public_names_resolve():
    import simmatch_tf

    for name in simmatch_tf.__all__:
        assert getattr(simmatch_tf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        simmatch_tf.nothing  # noqa: B018


def test_a_class_prior_needs_alignment():
    for values in (
        {"align": False, "class_prior": "labeled"},
        {"algorithm": "fixmatch", "class_prior": "shares.csv"},
    ):
        with pytest.raises(InputError, match="which is off; give --align"):
            Config(labels=10, steps=1, **values)
    with pytest.raises(InputError, match="must be uniform, labeled or a CSV"):
        Config(labels=10, steps=1, class_prior=" ")
    with pytest.raises(InputError, match="is for --algorithm="):
        Config(
            labels=10, steps=1, algorithm="supervised", class_prior="labeled"
        )
    aligned = {"algorithm": "fixmatch", "align": True}
    config = Config(labels=10, steps=1, class_prior="labeled", **aligned)
    assert config.class_prior_file() is None
    assert config.absolute().class_prior == "labeled"


def test_the_file_of_a_class_prior_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(labels=10, steps=1, class_prior="shares.csv")
    assert config.class_prior_file() == "shares.csv"
    assert config.absolute().class_prior == str(tmp_path / "shares.csv")
    # Other methods have no such flag.
    supervised = Config(labels=10, steps=1, algorithm="supervised")
    assert supervised.class_prior_file() is None
    assert supervised.absolute() == supervised


@pytest.mark.parametrize(
    ("words", "prior"),
    [
        ((), "labeled"),
        (("--noalign",), "uniform"),
        (("--align=false",), "uniform"),
        (("--noalign", "--align"), "labeled"),
        (("--algorithm=fixmatch",), "uniform"),
        (("--algorithm=fixmatch", "--align"), "labeled"),
        (("--class_prior=uniform",), "uniform"),
    ],
)
def test_a_recipe_s_prior_is_dropped_where_alignment_is_off(
    words, prior, tmp_path
):
    recipe = tmp_path / "recipe.cfg"
    recipe.write_text("--labels=10\n--steps=1\n--class_prior=labeled\n")
    config = Config.from_argv(["train", f"--flagfile={recipe}", *words])
    assert config.class_prior == prior
    # Given on the command line itself it is refused.
    if prior == "uniform" and words != ("--class_prior=uniform",):
        with pytest.raises(InputError, match="which is off; give --align"):
            Config.from_argv(
                ["train", f"--flagfile={recipe}", *words]
                + ["--class_prior=labeled"]
            )


def test_a_recipe_that_replaces_a_method_s_own_default_is_named():
    recipe = pathlib.Path(__file__).parents[1] / "configs" / "digits_40.cfg"
    words = ["x", f"--flagfile={recipe}"]
    config = config_lib.Config.from_argv([*words, "--algorithm=uda"])
    assert config.replaced_defaults() == [
        "--threshold=0.0 comes from the recipe; the default of uda is 0.8"
    ]
    own = [*words, "--algorithm=uda", "--threshold=0.5"]
    assert config_lib.Config.from_argv(own).replaced_defaults() == []
    assert config_lib.Config.from_argv(words).replaced_defaults() == []


METHOD = ["x", "--dataset=digits", "--labels=40", "--steps=100"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--algorithm=comatch --lambda_c=2", "did you mean --comatch.lambda_c"),
        (
            "--algorithm=mixmatch --temperature=0.3",
            "not mixmatch, which has --mixmatch.temperature$",
        ),
        ("--optimizer=adam", "=0.03: is a rate for SGD; .* at most 0.02"),
        (
            "--optimizer=adam --learning_rate=0.002 --momentum=0.8",
            "--momentum=0.8: is for --optimizer=sgd",
        ),
        ("--algorithm=flexmatch --threshold=0", "such as --threshold=0.95"),
        ("--algorithm=remixmatch --batch_size=2", "must be at least 4 with"),
        ("--algorithm=mixmatch --unlabeled_ratio=2", "must be 1 with"),
        ("--ema_start_steps=5", "needs --ema_start_momentum"),
        ("--threshold_policy=flexible --threshold=0", "without effect at"),
    ],
)
def test_flags_of_methods_that_do_not_fit(words, message):
    with pytest.raises(InputError, match=message):
        config_lib.Config.from_argv([*METHOD, *words.split()])


def test_notes_on_what_does_not_suit_the_run():
    def config(words):
        return config_lib.Config.from_argv([*METHOD, *words.split()])

    long = config("--algorithm=mean_teacher --ramp_steps=400")
    (note,) = long.hyper.notes(100)
    assert "reaches 12, not --lambda_u=50, in the 100 steps" in note
    assert long.hyper.notes(401) == []
    warmup = config("--algorithm=dash --dash.epoch_steps=5")
    (note,) = warmup.hyper.notes(50)
    assert "all 50 steps of this run are warm-up" in note
    assert warmup.hyper.notes(51) == []
    (line,) = config("--algorithm=pi_model --cutout=0.9").without_effect()
    assert line.startswith("--cutout=0.9: has no effect, for --algorithm=pi_")
    assert config("--algorithm=uda --cutout=0.9").without_effect() == []


def test_help_has_all_flags_of_the_method_that_is_named():
    text = command.help_text(config_lib.Config, ["--algorithm=dash"])
    assert "--dash.epoch_steps" in text and "--alpha" not in text
    usual = command.help_text(config_lib.Config)
    assert "--alpha" in usual and "--memory_momentum" not in usual
    assert "1 for mean_teacher, mixmatch" in " ".join(usual.split())
