"""Packaging of simmatch_tf."""

import pathlib
import re
import sys

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.*)"',
    (ROOT / "simmatch_tf" / "__init__.py").read_text(encoding="utf-8"),
)[1]

packages = setuptools.find_packages(include=["simmatch_tf", "simmatch_tf.*"])
if "editable_wheel" in sys.argv:
    # "." makes it a plain entry of sys.path: otherwise another folder named
    # simmatch_tf in the current one, such as the clone, would hide the package.
    # The recipes are found in the clone.
    package_dir = {"": "."}
else:
    # The recipes are part of the wheel: --flagfile=configs/x.cfg finds them.
    packages.append("simmatch_tf.configs")
    package_dir = {"simmatch_tf.configs": "configs"}

setuptools.setup(
    name="simmatch_tf",
    version=VERSION,
    description="SimMatch on TensorFlow and Keras: image classifiers from a "
    "handful of labels and many unlabeled images",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "simmatch_tf.configs": ["*.cfg", "plans/*.cfg"],
        "simmatch_tf.labeling": ["page/*"],
        "simmatch_tf.reporting": ["templates/*.html"],
    },
    entry_points={
        "console_scripts": ["simmatch = simmatch_tf.__main__:main"],
    },
    # h5py comes with Keras, scipy and threadpoolctl with scikit-learn, jinja2
    # and matplotlib serve `report` and `experiment`.
    install_requires=[
        "absl-py>=2.1",
        "jinja2>=3.1",
        "keras>=3.10,<4",
        "keras-cv>=0.9,<0.10",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10",
        "scikit-image>=0.22",
        "scikit-learn>=1.4",
        "tensorboard>=2.19,<2.22",
        "tensorflow>=2.19,<2.22",
        # TFDS imports importlib_resources and does not ask for it.
        "importlib_resources",
        "tensorflow-datasets>=4.9.7,<5",
        "tqdm>=4.66",
        # TensorBoard needs it, too.
        "werkzeug>=3",
    ],
    extras_require={
        "docs": ["mkdocs>=1.6,<2"],
        "examples": ["ipykernel>=6", "nbclient>=0.10"],
        "gpu": ["tensorflow[and-cuda]>=2.19,<2.22"],
        "hub": ["keras-hub>=0.32,<1"],
        "litert": ["ai-edge-litert>=2.0"],
        "onnx": ["onnxruntime>=1.20", "tf2onnx>=1.17"],
        "parquet": ["pyarrow>=14"],
        "pytorch": ["torch>=2.4"],
        "serving": ["tensorflow-serving-api>=2.19,<2.22"],
        "test": [
            "build",
            "import-linter>=2",
            "pyarrow>=14",
            "pytest>=8",
            "pytest-cov>=5",
            "pytest-xdist>=3.5",
            "ruff==0.17.6",
            "setuptools>=70",
            "wheel",
        ],
    },
)
