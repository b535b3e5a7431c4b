"""import_pytorch and export_pytorch on files that PyTorch wrote."""

import copy
import json
import pathlib

import keras
import numpy as np
import pytest

import simmatch_tf
from simmatch_tf import (
    evaluate,
    export_pytorch,
    import_pytorch,
)
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import initial
from simmatch_tf.training import state as state_lib
from tests import runs

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install -e '.[pytorch]'"
)

import pytorch_networks  # noqa: E402

pytestmark = pytest.mark.extra

CLASSES, DIM, SLOTS, WINDOW = 10, 16, 20, 8
# A run on the small stand-in of CIFAR-10, as the PyTorch one would be.
RECIPE = (
    "--dataset=cifar10",
    "--backbone=resnet18",
    "--targets_from=teacher",
    "--weight_decay_on=all",
    "--batch_size=4",
    "--unlabeled_ratio=2",
    "--epochs=4",
    "--eval_every=10",
)
LABELS = "--labels=20"


def published(classes=CLASSES, window=WINDOW, **more):
    """A checkpoint in the layout of the published runs, after one SGD step."""

    def make():
        return pytorch_networks.Network(
            pytorch_networks.ResNet(18), 512, classes, DIM
        )

    model = pytorch_networks.SimMatch(make, classes, DIM, SLOTS, window)
    pytorch_networks.randomize(model, 0)
    generator = torch.Generator().manual_seed(1)
    bank = torch.randn(DIM, SLOTS, generator=generator)
    model.bank.copy_(torch.nn.functional.normalize(bank, dim=0))
    # In no order of classes: slots keep the order of the file.
    model.labels.copy_((torch.arange(SLOTS) * 7 + 3) % classes)
    model.DA_queue.copy_(torch.rand(window, classes, generator=generator))
    model.DA_ptr.fill_(3)
    optimizer = torch.optim.SGD(
        model.main.parameters(), 0.03, momentum=0.9, nesterov=True
    )
    images = torch.randn(4, 3, 32, 32, generator=generator)
    features, logits, z = model.main(images)
    (logits.square().mean() + z[:, 0].mean()).backward()
    optimizer.step()
    return {
        "state_dict": pytorch_networks.Wrapped(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        **more,
    }, model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    content, _ = published(epoch=2)
    path = tmp_path_factory.mktemp("torch") / "published.pth"
    torch.save(content, path)
    return path


def flags(file, *words):
    return import_pytorch.ImportPytorchConfig.from_argv(
        ["import_pytorch", str(file), *words]
    )


def labeled_list(tmp_path, source_labels):
    """A list of images whose classes are the file's slots'."""
    wanted = [(slot * 7 + 3) % CLASSES for slot in range(SLOTS)]
    places = {
        label: list(np.flatnonzero(source_labels == label))
        for label in range(CLASSES)
    }
    path = tmp_path / "list.txt"
    path.write_text("\n".join(str(places[label].pop(0)) for label in wanted))
    return path


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def imported(file, small_tfds, tmp_path_factory):
    """The run of that file, not to be written to."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    import_pytorch.main(
        flags(file, f"--workdir={workdir}", f"--tfds_dir={small_tfds}", *RECIPE)
    )
    return workdir


@pytest.mark.slow
def test_a_round_trip_gives_the_same_tensors(file, imported, tmp_path):
    back = tmp_path / "back.pth"
    export_pytorch.main(
        export_pytorch.ExportPytorchConfig(
            workdir=str(imported), output=str(back)
        )
    )
    first = torch.load(file, weights_only=True)
    again = torch.load(back, weights_only=True)
    same(first["state_dict"], again["state_dict"])
    assert again["epoch"] == 2 and again["step"] == 10  # 2 · (40 // 8)
    one, other = first["optimizer"], again["optimizer"]
    assert list(one["state"]) == list(other["state"])
    for number, entry in one["state"].items():
        same(entry, other["state"][number])
    # PyTorch itself takes it.
    _, model = published()
    pytorch_networks.Wrapped(model).load_state_dict(again["state_dict"])
    optimizer = torch.optim.SGD(model.main.parameters(), 1.0, momentum=0.5)
    optimizer.load_state_dict(other)
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4
    first_weight = next(model.main.parameters())
    assert torch.equal(
        optimizer.state[first_weight]["momentum_buffer"],
        one["state"][0]["momentum_buffer"],
    )
    # Its images are normalised as ours.
    model = simmatch_tf.load(imported)
    np.testing.assert_array_equal(
        np.float32(again["mean"]), model.get_layer("normalize").mean.value
    )


@pytest.mark.slow
def test_the_run_equals_the_networks_of_the_file(imported):
    _, model = published()
    student = simmatch_tf.load(
        imported
    )  # of record: the teacher form's student
    layer = student.get_layer("normalize")
    images = np.random.default_rng(0).integers(0, 256, [6, 32, 32, 3])
    x = (images / 255 - np.asarray(layer.mean.value)) / layer.std.value.numpy()
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))
    for name, network in (("student", model.main), ("ema", model.ema)):
        ours = simmatch_tf.load(imported, weights=name)(images.astype(np.uint8))
        with torch.no_grad():
            _, logits, z = network.eval()(x)
        for one, other in ((ours["logits"], logits), (ours["embeddings"], z)):
            scale = float(other.abs().max())
            np.testing.assert_allclose(one, other, atol=1e-4 * scale)


@pytest.mark.slow
def test_evaluate_and_train_take_the_run(
    file, tmp_path, small_tfds, monkeypatch
):
    """The memory keeps its own order as the run's split."""
    import tensorflow_datasets as tfds

    workdir = tmp_path / "run"
    split = tfds.load("cifar10", data_dir=small_tfds, split="train")
    labels = np.array([int(x["label"]) for x in split.as_numpy_iterator()])
    path = labeled_list(tmp_path, labels)
    words = (f"--workdir={workdir}", f"--tfds_dir={small_tfds}", *RECIPE)
    import_pytorch.main(flags(file, *words, f"--labeled_list={path}"))
    split = json.loads((workdir / "split.json").read_text())
    assert split["labeled"] == [int(x) for x in path.read_text().split()]
    assert split["labels"] == [(slot * 7 + 3) % 10 for slot in range(SLOTS)]
    evaluate.main(evaluate.EvaluateConfig(workdir=str(workdir)))
    assert json.loads((workdir / "evaluation.json").read_text())["step"] == 10
    # The list may be gone now: the run has its split.
    path.unlink()
    config = simmatch_tf.Config.from_flagfile(workdir / "flags.cfg")
    assert config.backbone == "resnet18" and config.projection_dim == DIM
    assert config.da_window == WINDOW
    result = simmatch_tf.fit(config)
    assert result.steps == 20 and np.isfinite(result.loss)
    assert (result.labels, result.unlabeled) == (SLOTS, 40)
    # One that is at its end is evaluated; no step, no loss.
    done = tmp_path / "done"
    path.write_text("\n".join(str(x) for x in split["labeled"]))
    import_pytorch.main(
        flags(
            file, f"--workdir={done}", *words[1:], f"--labeled_list={path}",
            "--finished_steps=20",
        )
    )  # fmt: skip
    config = simmatch_tf.Config.from_flagfile(done / "flags.cfg")
    result = simmatch_tf.fit(config)
    assert result.loss is None and result.student["best"]["step"] == 20
    json.loads((done / "results.json").read_text(), parse_constant=pytest.fail)
    back = tmp_path / "back.pth"
    export_pytorch.main(
        export_pytorch.ExportPytorchConfig(
            workdir=str(workdir), output=str(back)
        )
    )
    content = torch.load(back, weights_only=True)
    assert content["step"] == 20 and "epoch" not in content
    state = content["state_dict"]
    before = torch.load(file, weights_only=True)["state_dict"]
    name = "module.main.backbone.bn1.num_batches_tracked"
    assert int(state[name]) == int(before[name]) + 10
    # Ten more batches in the window, from row 3 on.
    assert int(state["module.DA_ptr"]) == (3 + 10) % WINDOW
    assert not torch.equal(state["module.bank"], before["module.bank"])


@pytest.mark.slow
def test_slots_of_unknown_images(file, tmp_path, small_tfds):
    workdir = tmp_path / "run"
    words = (f"--workdir={workdir}", f"--tfds_dir={small_tfds}", *RECIPE)
    import_pytorch.main(flags(file, *words))
    evaluate.main(evaluate.EvaluateConfig(workdir=str(workdir)))
    config = simmatch_tf.Config.from_flagfile(workdir / "flags.cfg")
    with pytest.raises(InputError, match="import the file again with --label"):
        simmatch_tf.fit(config)
    with pytest.raises(InputError, match="import the file again with --label"):
        simmatch_tf.fit(
            simmatch_tf.Config.from_argv(
                [
                    "x",
                    *RECIPE,
                    f"--split_file={workdir}/split.json",
                    f"--workdir={tmp_path}/other",
                    f"--tfds_dir={small_tfds}",
                ]
            )
        )


def test_a_list_that_is_not_the_memorys(file, tmp_path, small_tfds):
    words = (f"--workdir={tmp_path}/run", f"--tfds_dir={small_tfds}", *RECIPE)
    path = tmp_path / "list.txt"
    path.write_text("\n".join(str(n) for n in range(SLOTS)))
    with pytest.raises(InputError, match="is not in the memory's order: image"):
        import_pytorch.main(flags(file, *words, f"--labeled_list={path}"))
    path.write_text("0\n1\n")
    with pytest.raises(InputError, match="names 2 images, but the memory has"):
        import_pytorch.main(flags(file, *words, f"--labeled_list={path}"))
    assert not (tmp_path / "run" / "flags.cfg").exists()


@pytest.mark.slow
def test_published_runs_need_no_recipe(tmp_path):
    """1,000 classes and few labels: ImageNet's 1 %, without its images."""
    content, _ = published(classes=1000, window=256)
    path = tmp_path / "a.pth"
    torch.save({"state_dict": content["state_dict"]}, path)
    workdir = tmp_path / "run"
    # No data here, and none is prepared.
    import_pytorch.main(
        flags(path, f"--workdir={workdir}", f"--tfds_dir={tmp_path}/none")
    )
    config = simmatch_tf.Config.from_flagfile(workdir / "flags.cfg")
    assert config.dataset == "imagenet2012" and config.targets_from == "teacher"
    assert config.label_fraction is None
    assert config.split_file == str(workdir / "split.json")
    assert (config.backbone, config.batch_size) == ("resnet18", 64)
    split = json.loads((workdir / "split.json").read_text())
    assert split["train_images"] == 1_281_167
    assert split["unlabeled_images"] == 1_281_167 - SLOTS
    assert split["class_names"][0] == "n01440764"
    with pytest.raises(InputError, match="give the flags of configs/imagenet"):
        import_pytorch.main(
            import_pytorch.ImportPytorchConfig(
                file=str(path), workdir=str(tmp_path / "other")
            )
        )
    model = simmatch_tf.load(workdir)
    assert model.input_shape == (None, 224, 224, 3)
    np.testing.assert_allclose(
        model.get_layer("normalize").mean.value, [0.485, 0.456, 0.406]
    )


def broken(file, tmp_path, change):
    content = torch.load(file, weights_only=True)
    change(content["state_dict"], content)
    path = tmp_path / "broken.pth"
    torch.save(content, path)
    return path


def remove(*names):
    def change(state, content):
        for name in names:
            del state[name]

    return change


def put(name, value):
    def change(state, content):
        state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove("module.main.fc.bias", "module.bank"),
            r"missing \(2\): main\.fc\.bias, bank$",
        ),
        (
            put("module.main.head.4.weight", torch.zeros(2)),
            r"unknown \(1\): main\.head\.4\.weight",
        ),
        (
            put("module.bank", torch.zeros(SLOTS, DIM)),
            r"another shape \(1\): bank \[20, 16\] for \[16, 20\]",
        ),
        (put("module.labels", torch.arange(SLOTS)), r"must be in \[0, 10\)"),
        (
            put("module.main.backbone.layer1.2.conv1.weight", torch.zeros(1)),
            "no backbone that is known here",
        ),
    ],
)
def test_damaged_checkpoints(file, tmp_path, small_tfds, change, message):
    path = broken(file, tmp_path, change)
    words = (f"--workdir={tmp_path}/run", f"--tfds_dir={small_tfds}", *RECIPE)
    with pytest.raises(InputError, match=message):
        import_pytorch.main(flags(path, *words))
    assert not (tmp_path / "run" / "flags.cfg").exists()


def test_momentum_of_another_shape(file, tmp_path, small_tfds):
    def change(state, content):
        content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)

    path = broken(file, tmp_path, change)
    with pytest.raises(InputError, match="not of the form that is known"):
        import_pytorch.main(
            flags(
                path,
                f"--workdir={tmp_path}/run",
                f"--tfds_dir={small_tfds}",
                *RECIPE,
            )
        )


class Stranger:
    """Not a tensor."""


def test_unreadable_files(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="a.pth: cannot be read"):
        import_pytorch.main(flags(path, "--workdir=x"))
    torch.save({"state_dict": {}, "args": Stranger()}, path)
    with pytest.raises(InputError, match="more than tensors and plain values"):
        import_pytorch.main(flags(path, "--workdir=x"))
    torch.save({"weights": 3}, path)
    with pytest.raises(
        InputError, match="has no state_dict, a dict of names and tensors"
    ):
        import_pytorch.main(flags(path, "--workdir=x"))


def test_wrong_flags(file, tmp_path, small_tfds, monkeypatch):
    for words, message in (
        ([], "give exactly one"),
        (["--output=x.pth"], "must end in .keras"),
        (["other", "--workdir=x"], "'other' is not a flag"),
        (["--workdir=x", "--describe"], "--describe=True: is for train"),
        (["--workdir=x", "--init_from=y"], "--init_from=y: is for train"),
        (["--output=x.keras", "--steps=3"], "--steps=3: says nothing of an"),
        (["--output=/no/x.keras"], "must be a file in a folder that exists"),
    ):
        with pytest.raises(InputError, match=message):
            flags(file, *words)
    with pytest.raises(InputError, match="no such file"):
        flags(tmp_path / "none.pth", "--workdir=x")
    with pytest.raises(InputError, match="is a SimMatch checkpoint"):
        import_pytorch.main(flags(file, f"--output={tmp_path}/a.keras"))
    with pytest.raises(InputError, match="none of ImageNet's: name its recipe"):
        import_pytorch.main(flags(file, f"--workdir={tmp_path}/run"))
    data = f"--tfds_dir={small_tfds}"
    with pytest.raises(InputError, match="has 10 classes, but --dataset=cifar"):
        import_pytorch.main(
            flags(
                file, f"--workdir={tmp_path}/run", data, *RECIPE[1:],
                "--dataset=cifar100",
            )
        )  # fmt: skip
    with pytest.raises(InputError, match="10 steps are done, but the recipe"):
        import_pytorch.main(
            flags(
                file, f"--workdir={tmp_path}/run", data, *RECIPE, "--epochs=1"
            )
        )
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"simmatch_tf\[pytorch\]"):
        import_pytorch.main(flags(file, "--workdir=x"))


@pytest.mark.slow
def test_a_workdir_in_use(file, tmp_path, small_tfds, finished_run):
    workdir, _ = finished_run
    words = (f"--tfds_dir={small_tfds}", *RECIPE)
    with pytest.raises(InputError, match="other flags"):
        import_pytorch.main(flags(file, f"--workdir={workdir}", *words))
    own = f"--workdir={tmp_path}/run"
    import_pytorch.main(flags(file, own, *words))
    with pytest.raises(InputError, match="holds a run already"):
        import_pytorch.main(flags(file, own, *words))
    import_pytorch.main(flags(file, own, *words, "--overwrite"))


@pytest.mark.slow
def test_encoders_become_first_weights(file, tmp_path):
    _, model = published()
    plain = copy.deepcopy(model.main.backbone).state_dict()
    plain["fc.weight"] = torch.randn(7, 512)
    plain["fc.bias"] = torch.randn(7)
    moco = {
        f"module.encoder_q.{name}": value
        for name, value in model.main.backbone.state_dict().items()
    }
    for number in (0, 2):
        for kind in ("weight", "bias"):
            moco[f"module.encoder_q.fc.{number}.{kind}"] = getattr(
                model.main.head[number], kind
            )
    moco["module.queue"] = torch.zeros(DIM, 9)
    for name, content in (("plain", plain), ("moco", {"state_dict": moco})):
        torch.save(content, tmp_path / f"{name}.pth")
        output = tmp_path / f"{name}.keras"
        import_pytorch.main(
            flags(tmp_path / f"{name}.pth", f"--output={output}")
        )
        encoder = keras.models.load_model(output)
        kernel = np.asarray(
            encoder.get_layer("resnet18").get_layer("conv1").kernel.value
        )
        np.testing.assert_array_equal(
            kernel.transpose(3, 2, 0, 1),
            model.main.backbone.conv1.weight.detach(),
        )
    assert set(keras.models.load_model(tmp_path / "plain.keras").output) == {
        "features",
        "logits",
    }
    assert set(encoder.output) == {"features", "embeddings"}
    config = simmatch_tf.Config.from_argv(
        ["x", *RECIPE, LABELS, f"--projection_dim={DIM}"]
    )
    algorithm = state_lib.make_algorithm(
        config.with_durations(1000),
        strategies.one(),
        image_shape=(32, 32, 3),
        slot_labels=np.arange(20) % CLASSES,
        num_classes=CLASSES,
    )
    initial.initialize(algorithm, str(output), list("0123456789"))
    for trained in algorithm.networks().values():
        for part in ("resnet18", "projection_head"):
            for one, other in zip(
                trained.get_layer(part).variables,
                encoder.get_layer(part).variables,
                strict=True,
            ):
                np.testing.assert_array_equal(one.value, other.value)
    with pytest.raises(InputError, match="is an encoder without a SimMatch"):
        import_pytorch.main(
            flags(tmp_path / "plain.pth", f"--workdir={tmp_path}/x")
        )
    grey = {"conv1.weight": plain["conv1.weight"][:, :1]}
    torch.save({**plain, **grey}, tmp_path / "grey.pth")
    with pytest.raises(InputError, match="has 1 input channels, but must"):
        import_pytorch.main(
            flags(tmp_path / "grey.pth", f"--output={tmp_path}/g.keras")
        )
    del plain["bn1.bias"]
    torch.save(plain, tmp_path / "plain.pth")
    with pytest.raises(InputError, match=r"missing \(1\): backbone.bn1.bias"):
        import_pytorch.main(flags(tmp_path / "plain.pth", f"--output={output}"))


def test_our_own_runs_go_to_pytorch(finished_run, tmp_path):
    """A WRN on grey images, kernels alone decaying."""
    workdir, _ = finished_run
    output = tmp_path / "run.pth"
    export_pytorch.main(
        export_pytorch.ExportPytorchConfig(
            workdir=str(workdir), output=str(output)
        )
    )
    content = torch.load(output, weights_only=True)
    state = content["state_dict"]
    steps = runs.SMALL["steps"]
    name = "module.ema.backbone.group3.0.bn2.num_batches_tracked"
    assert int(state[name]) == content["step"] == steps
    assert state["module.main.backbone.conv.weight"].shape == (16, 1, 3, 3)
    kernels, vectors = content["optimizer"]["param_groups"]
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (5e-4, 0.0)
    model = simmatch_tf.load(workdir, weights="student")
    velocity = content["optimizer"]["state"][0]["momentum_buffer"]
    kernel = model.get_layer("wrn_10_1").get_layer("conv").kernel
    assert tuple(velocity.shape) == tuple(np.transpose(kernel.value).shape)
    # And back: nothing is lost.
    again = tmp_path / "again"
    words = [w for w in runs.argv(again) if "labels=" not in w]
    import_pytorch.main(flags(output, *words))
    back = tmp_path / "back.pth"
    export_pytorch.main(
        export_pytorch.ExportPytorchConfig(workdir=str(again), output=str(back))
    )
    same(state, torch.load(back, weights_only=True)["state_dict"])


@pytest.mark.slow
def test_adam_has_no_momentum_buffers(tmp_path):
    """Its runs are exported without an optimizer; none goes on with it."""
    adam = {"optimizer": "adam", "learning_rate": 0.002}
    runs.fit(tmp_path / "run", **adam)
    output = tmp_path / "run.pth"
    export_pytorch.main(
        export_pytorch.ExportPytorchConfig(
            workdir=str(tmp_path / "run"), output=str(output)
        )
    )
    content = torch.load(output, weights_only=True)
    assert "optimizer" not in content and content["step"] == runs.SMALL["steps"]
    words = [w for w in runs.argv(tmp_path / "b", **adam) if "labels=" not in w]
    with pytest.raises(InputError, match="--optimizer=adam: must be sgd"):
        import_pytorch.main(flags(output, *words))


def test_export_of_what_cannot_be(tmp_path, finished_run):
    with pytest.raises(InputError, match="must be a file in a folder"):
        export_pytorch.ExportPytorchConfig(workdir="x", output=str(tmp_path))
    with pytest.raises(InputError, match="no run here"):
        export_pytorch.main(
            export_pytorch.ExportPytorchConfig(
                workdir=str(tmp_path), output=str(tmp_path / "a.pth")
            )
        )
    workdir, _ = finished_run
    output = pathlib.Path("/dev/full/none.pth")
    with pytest.raises(InputError, match="must be a file in a folder"):
        export_pytorch.ExportPytorchConfig(workdir="x", output=str(output))
    config = export_pytorch.ExportPytorchConfig(
        workdir=str(workdir), output=str(tmp_path / "a.pth")
    )
    (tmp_path / "a.pth").mkdir()  # in the file's place, made meanwhile
    with pytest.raises(InputError, match="a.pth: cannot be written"):
        export_pytorch.main(config)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("module.main.fc.weight", lambda x: x * np.nan, "NaN or infinite"),
        ("module.bank", lambda x: x / 0, "module.bank: has values that are"),
        ("module.main.fc.weight", lambda x: x.to_sparse(), "(?i)sparse"),
    ],
)
def test_values_that_no_network_has(file, tmp_path, name, change, message):
    content = torch.load(file, weights_only=True)
    content["state_dict"][name] = change(content["state_dict"][name])
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=message):
        import_pytorch.main(
            flags(tmp_path / "bad.pth", f"--workdir={tmp_path}/run", *RECIPE)
        )
    assert not (tmp_path / "run").exists()


def test_statistics_that_do_not_fit(file, tmp_path, small_tfds):
    data = f"--tfds_dir={small_tfds}"
    for mean, std, message in (
        ([0.5], [0.2], "one for each of 3 channels"),
        ([0.5] * 3, [0.2, 0.2, 0.0], "std above 0"),
        (["x"] * 3, [0.2] * 3, "finite numbers, one for each of 3"),
    ):
        content = torch.load(file, weights_only=True)
        torch.save({**content, "mean": mean, "std": std}, tmp_path / "a.pth")
        with pytest.raises(InputError, match=message):
            import_pytorch.main(
                flags(
                    tmp_path / "a.pth", f"--workdir={tmp_path}/run", data,
                    *RECIPE,
                )
            )  # fmt: skip
    with pytest.raises(InputError, match="takes images of 3 channels"):
        import_pytorch.main(
            flags(
                file, f"--workdir={tmp_path}/run", *RECIPE[1:],
                "--dataset=digits", "--image_size=32",
            )
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
