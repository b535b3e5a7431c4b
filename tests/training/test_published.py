"""--init_from=imagenet, with random weights in place of the published ones."""

import functools
import http.server
import threading

import check_backbones
import kagglehub
import keras
import keras_cv
import numpy as np
import PIL.Image
import pytest
from keras.src.applications import mobilenet_v3
from keras.src.backend import config as keras_config
from keras.src.utils import file_utils
from keras_cv.src.utils import preset_utils

import simmatch_tf
from simmatch_tf import registry, runtime
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import library_backbone, network
from simmatch_tf.networks.backbones import libraries
from simmatch_tf.training import initial, loop
from tests import runs

NAME = "MobileNetV3Small"
BACKBONE = f"keras_applications:{NAME}"
FILE = "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with weights in the layout of the published ones."""
    folder = tmp_path_factory.mktemp("served")
    return folder, check_backbones.write_stand_in(NAME, folder / FILE)


@pytest.fixture
def server(served, tmp_path, monkeypatch):
    """A server of that folder, which the library takes for its own."""
    handler = functools.partial(_Handler, directory=served[0])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(mobilenet_v3, "BASE_WEIGHT_PATH", address)
    digest = file_utils.hash_file(served[0] / FILE, algorithm="md5")
    hashes = {"small_224_1.0_float": ("", digest)}
    monkeypatch.setattr(mobilenet_v3, "WEIGHTS_HASHES", hashes)
    monkeypatch.setattr(keras_config, "_KERAS_DIR", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    yield server
    stop(server)


def stop(server):
    server.shutdown()
    server.server_close()


def config(workdir, **changes):
    return runs.config(
        workdir,
        **{
            "backbone": BACKBONE,
            "init_from": "imagenet",
            "image_size": 32,
            "algorithm": "supervised",
            "batch_norm_momentum": None,
            "batch_norm": "frozen",
            "learning_rate": 0,
            "batch_size": 2,
            "steps": 1,
            **changes,
        },
    )


def backbone_of(path):
    model = simmatch_tf.load(path, weights="student")
    return network.parts(model)["backbone"]


@pytest.mark.slow
def test_a_run_starts_from_what_is_fetched_once(
    server, served, tmp_path, capsys
):
    simmatch_tf.fit(config(tmp_path / "first"))
    said = capsys.readouterr()
    assert "Downloading data from" in said.err and said.out == ""
    assert f"fetching the published weights of {BACKBONE}" in said.err
    assert "starts from imagenet: backbone; not in it in this s" in said.err
    assert server.asked == [f"/{FILE}"]
    stop(server)
    # Another run has the file of the first; one that goes on needs none.
    simmatch_tf.fit(config(tmp_path / "second"))
    (tmp_path / "keras" / "models" / FILE).unlink()
    (tmp_path / "second" / "results.json").unlink()
    simmatch_tf.fit(config(tmp_path / "second"))
    for name in ("first", "second"):
        weights = backbone_of(tmp_path / name).get_weights()
        for one, other in zip(weights, served[1], strict=True):
            np.testing.assert_array_equal(one, other)


def fails(*words, workdir):
    """The run says so before it reads an image."""
    with pytest.raises(InputError) as info:
        simmatch_tf.fit(config(workdir, steps=None, minutes=9))
    message = str(info.value)
    for word in words:
        assert word in message, message
    assert not workdir.exists()
    return message


@pytest.fixture
def no_images(monkeypatch):
    monkeypatch.setattr(loop.inputs, "make_source", lambda *_: pytest.fail())


def test_without_a_network(server, served, tmp_path, monkeypatch, no_images):
    stop(server)
    address = f"{mobilenet_v3.BASE_WEIGHT_PATH}{FILE}"
    message = fails(
        f"--init_from=imagenet, --backbone={BACKBONE}: its published",
        f"cannot be fetched (URL fetch failure on {address}",
        f"keras_applications keeps them in {tmp_path}/keras/models;",
        f"give --init_from={NAME}.weights.h5 instead",
        workdir=tmp_path / "run",
    )
    # The line that it names makes a file that fits.
    line = message.partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    with check_backbones.serving(served[0] / FILE):
        exec(line, {})
    filled = small_network()
    initial.fill(filled, f"{NAME}.weights.h5", backbone="--backbone=x")
    weights = network.parts(filled)["backbone"].get_weights()
    for one, other in zip(weights, served[1], strict=True):
        np.testing.assert_array_equal(one, other)


def small_network(name=BACKBONE, side=32):
    return network.build(
        name,
        image_shape=(side, side, 3),
        num_classes=None,
        projection_dim=None,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


def test_damaged_files(server, served, tmp_path, monkeypatch, no_images):
    whole = (served[0] / FILE).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    server.RequestHandlerClass.keywords["directory"] = other
    (other / FILE).write_bytes(whole[: len(whole) // 2])
    words = "Incomplete or corrupted file detected", "is damaged, remove it"
    fails(*words, workdir=tmp_path / "run")
    # Of some networks the library knows no digest.
    hashes = {"small_224_1.0_float": ("", None)}
    with monkeypatch.context() as patch:
        patch.setattr(mobilenet_v3, "WEIGHTS_HASHES", hashes)
        fails("truncated file", workdir=tmp_path / "run")
    # With the right digest, the damaged file in the cache is replaced.
    (other / FILE).write_bytes(whole)
    values = initial.fetch(BACKBONE)
    for one, weight in zip(values, served[1], strict=True):
        np.testing.assert_array_equal(one, weight)


def test_a_file_that_is_not_there(server, tmp_path, no_images):
    server.RequestHandlerClass.keywords["directory"] = tmp_path
    fails(f"{FILE}: 404 -- File not found", workdir=tmp_path / "run")


def test_weights_of_another_architecture(served):
    other = check_backbones.make_network("keras_applications:MobileNet", 32)
    before = network.parts(other)["backbone"].get_weights()
    with pytest.raises(InputError, match="holds another backbone than --back"):
        initial.fill(
            other, "imagenet", backbone="--backbone=x", published=served[1]
        )
    after = network.parts(other)["backbone"].get_weights()
    for one, value in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, value)


def test_one_process_fetches_at_a_time():
    """Another one would read a file that is not whole yet."""
    at_work, most, others = [], [], threading.Event()

    def fetch():
        with library_backbone._fetching():
            at_work.append(1)
            others.wait(0.05)  # long enough for the others to come
            most.append(len(at_work))
            at_work.pop()

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_it_leaves_no_trace_in_names(monkeypatch):
    """Those of a run are the same, whether it has fetched weights or not."""
    monkeypatch.setattr(
        library_backbone,
        "published",
        lambda *_: keras.Sequential([keras.layers.Dense(1)]).get_weights(),
    )
    names = []
    for _ in range(2):
        with runtime.names_apart():
            names.append(keras.layers.Dense(1).name)
        initial.fetch(BACKBONE)
    assert names[0] == names[1]


def test_a_cache_that_cannot_be_locked(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with library_backbone._fetching():
        pass


def test_presets_of_keras_cv(tmp_path, monkeypatch):
    """Random weights, saved as a preset, in place of the published one."""
    name = "mobilenet_v3_small"
    _, arguments = library_backbone.keras_cv_presets.PRESETS[name]
    core = keras_cv.models.MobileNetV3Backbone(
        include_rescaling=True, **arguments
    )
    preset_utils.save_to_preset(core, tmp_path / "preset")
    asked = []

    def download(handle, path):
        asked.append(handle)
        return str(tmp_path / "preset" / path)

    monkeypatch.setattr(kagglehub, "model_download", download)
    values = initial.fetch(f"keras_cv:{name}")
    model = small_network(f"keras_cv:{name}")
    initial.fill(model, "imagenet", backbone="--backbone=x", published=values)
    handles = keras_cv.models.MobileNetV3Backbone.presets
    handle = handles[f"{name}_imagenet"]["kaggle_handle"]
    assert set(asked) == {handle.removeprefix("kaggle://")}
    weights = network.parts(model)["backbone"].get_weights()
    for one, other in zip(weights, core.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    def fail(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(kagglehub, "model_download", fail)
    with pytest.raises(InputError) as info:
        initial.fetch(f"keras_cv:{name}")
    place = kagglehub.config.get_cache_folder()
    line = (
        'python -c "import keras_cv; keras_cv.models.MobileNetV3Backbone.'
        f"from_preset('{name}_imagenet').save_weights('{name}.weights.h5')\""
    )
    for words in (f"keras_cv keeps them in {place};", line):
        assert words in str(info.value)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name.endswith(":MobileNet")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in check_backbones.FEW_PUBLISHED
    ],
)
def test_each_layout(name, tmp_path):
    check_backbones.check_published(name, tmp_path)


@pytest.mark.slow
def test_the_check_sees_other_pixels(tmp_path, monkeypatch):
    scale = library_backbone.Preprocess.call
    monkeypatch.setattr(
        library_backbone.Preprocess,
        "call",
        lambda self, images: 1.01 * scale(self, images),
    )
    with pytest.raises(check_backbones.Failure, match="features differ by"):
        check_backbones.check_published(
            "keras_applications:MobileNet", tmp_path
        )


# ------------------------------------------------- sides of the images --
def test_sides_of_a_folder_s_images():
    for name in (
        *(
            f"keras_applications:{n}"
            for n in libraries.keras_applications_names()
        ),
        *(f"keras_cv:{n}" for n in library_backbone.keras_cv_presets.PRESETS),
    ):
        facts = registry.networks.find(name)[0].facts
        registry.networks.check_side(name, facts["side_with_weights"])


@pytest.fixture
def photos(tmp_path):
    for part in ("labeled/a", "labeled/b", "test/a", "test/b", "unlabeled"):
        for number in range(4):
            path = tmp_path / "photos" / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = hash((part, number)) % 256
            PIL.Image.new("RGB", (32, 32), (shade, 9, 9)).save(path)
    return tmp_path / "photos"


def of_recipe(photos, workdir, *words):
    words = [
        "train",
        "--flagfile=configs/folder.cfg",
        f"--data_dir={photos}",
        f"--workdir={workdir}",
        *words,
    ]
    return simmatch_tf.Config.from_argv(words)


@pytest.mark.parametrize(
    ("words", "side"),
    [
        ((), 32),
        (("--backbone=resnet18",), 224),
        ((f"--backbone={BACKBONE}",), 224),
        ((f"--backbone={BACKBONE}", "--init_from=imagenet"), 96),
        ((f"--backbone={BACKBONE}", "--init_from=x.weights.h5"), 96),
        (("--backbone=keras_cv:mit_b0", "--init_from=imagenet"), 96),
        (
            (
                f"--backbone={BACKBONE}",
                "--init_from=imagenet",
                "--image_size=64",
            ),
            64,
        ),
        (("--init_from=runs/other",), 32),
    ],
)
def test_side_of_a_folder(photos, tmp_path, words, side):
    flags = of_recipe(photos, tmp_path / "run", *words)
    assert flags.image_size == (64 if side == 64 else None)
    source = loop.inputs.make_source(flags)
    assert source.image_shape == (side, side, 3)


@pytest.mark.slow
def test_the_recipe_of_a_folder(server, photos, tmp_path, monkeypatch):
    """With another backbone and its published weights, and small images."""
    flags = of_recipe(
        photos,
        tmp_path / "run",
        f"--backbone={BACKBONE}",
        "--init_from=imagenet",
        "--steps=1",
        "--batch_size=2",
        "--unlabeled_ratio=1",
        "--nobaselines",
    )
    simmatch_tf.fit(flags)
    model = simmatch_tf.load(tmp_path / "run")
    assert model.inputs[0].shape == (None, 96, 96, 3)
    (tmp_path / "run" / "results.json").unlink()
    stop(server)
    assert simmatch_tf.fit(flags).steps == 1
