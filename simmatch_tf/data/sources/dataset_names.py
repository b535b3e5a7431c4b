"""Is there a dataset of this name? Answered before TensorFlow is imported.

--dataset takes any dataset of TensorFlow Datasets (TFDS). To ask TFDS itself
would take seconds, so the installed package is found without importing it and
its source is read as text. Nothing here imports anything heavy.
"""

import importlib.util
import os
import re

from simmatch_tf.flags import commandline

# Sources that are not TFDS's.
OWN = ("digits", "folder", "custom")

# Folders of TFDS in which no class gives a dataset its name.
_NO_CLASSES = frozenset(
    "core datasets dataset_collections proto scripts testing".split()
)
_CLASS = re.compile(r"^class\s+(\w+)\s*\(([^()]*)\)", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_FORM = re.compile(
    r"((?P<namespace>[a-z][\w-]*):)?(?P<dataset>[a-z]\w*)"
    r"(?P<rest>(/[\w+.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?)",
    re.ASCII | re.IGNORECASE,
)
_LIST = (
    'python -c "import '
    'tensorflow_datasets as tfds; print(tfds.list_builders())"'
)


def _package() -> str | None:
    """The folder of the installed TFDS; None when it is not installed."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    # Seen from the home folder, ~/tensorflow_datasets (the data) would do as
    # a package without __init__.py.
    if spec is None or spec.origin is None:
        return None
    return os.path.dirname(spec.origin)


def _folders(path: str) -> list[str]:
    """Names of the folders in `path`; none where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _snake_case(name: str) -> str:
    """TFDS's rule: `FashionMNIST` → `fashion_mnist`, `Cifar10` → `cifar10`.

    A part begins at a capital that lower-case letters or digits follow, and at
    any capital behind a lower-case letter or a digit.
    """
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


def _class_lines(package: str) -> list[tuple[str, list[str]]]:
    """(class, its arguments without their modules) of TFDS's datasets."""
    found = []
    for path, folders, files in os.walk(package):
        if path == package:
            folders[:] = [f for f in folders if f not in _NO_CLASSES]
        for file in files:
            if not file.endswith(".py") or file.endswith("_test.py"):
                continue
            with open(os.path.join(path, file), encoding="utf-8") as source:
                found += _CLASS.findall(source.read())
    return [
        (name, [a.strip().rpartition(".")[2] for a in arguments.split(",")])
        for name, arguments in found
    ]


def _class_names(package: str) -> set[str]:
    """Names that datasets have from their builders' classes."""
    lines = _class_lines(package)
    # TFDS's own base classes end so; other builders stand on one of these, or
    # on each other in whatever file, so look until no new one turns up.
    builders = {base for _, bases in lines for base in bases}
    builders = {base for base in builders if base.endswith("Builder")}
    size = 0
    while len(builders) > size:
        size = len(builders)
        builders |= {c for c, bases in lines if builders.intersection(bases)}
    return {
        _snake_case(name)
        for name, bases in lines
        if builders.intersection(bases)
        and "skip_registration=True" not in bases  # a base class
    }


def tfds_names() -> frozenset[str]:
    """Names of all datasets that the installed TFDS has the code of.

    TFDS names a dataset after its folder in tensorflow_datasets/datasets/, or
    (the older ones) after its builder's class in snake case.

    Returns:
        The names; none when TFDS is not installed.
    """
    package = _package()
    if package is None:
        return frozenset()
    folders = _folders(os.path.join(package, "datasets"))
    return frozenset(
        _class_names(package).union(filter(_NAME.fullmatch, folders))
    )


def data_dir(tfds_dir: str | os.PathLike | None) -> str:
    """`tfds_dir`, or TFDS's default for None, with ~ written out."""
    if tfds_dir is None:
        tfds_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return os.path.expanduser(tfds_dir)


def _is_prepared(folder: str) -> bool:
    """Whether `folder` holds [config/]version/dataset_info.json."""
    places = [folder]
    for name in _folders(folder):
        if _VERSION.fullmatch(name) is None:
            places.append(os.path.join(folder, name))
    return any(
        os.path.isfile(os.path.join(place, version, "dataset_info.json"))
        for place in places
        for version in filter(_VERSION.fullmatch, _folders(place))
    )


def prepared_names(tfds_dir: str | os.PathLike | None) -> frozenset[str]:
    """Names of the datasets that lie prepared in a folder of this machine.

    Args:
        tfds_dir: The folder, DIR/name/[config/]version/dataset_info.json; None
            for TFDS's default, $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
        The names; none when there is no such folder.
    """
    root = data_dir(tfds_dir)
    return frozenset(
        name
        # TFDS writes every name in lower case before it looks for the folder.
        for name in filter(_NAME.fullmatch, _folders(root))
        if _is_prepared(os.path.join(root, name))
    )


def _check_namespace(name: str, namespace: str, package: str) -> None:
    """Raises InputError unless TFDS knows the namespace of a community."""
    path = os.path.join(package, "community-datasets.toml")
    with open(path, encoding="utf-8") as file:
        known = re.findall(r"^\[([\w-]+)\]", file.read(), re.MULTILINE)
    if namespace not in known:
        raise commandline.InputError(
            f"--dataset={name}: {namespace} is not a namespace of TFDS, and a "
            "version has the form NAME:1.0.0"
            + commandline.nearest(namespace, known)
        )


def base(name: str) -> str:
    """NAME of NAME/CONFIG:VERSION."""
    return re.split("[/:]", name)[0]


def check(name: str, tfds_dir: str | os.PathLike | None = None) -> None:
    """Checks that there is a dataset of this name.

    Configs, versions and what stands in a namespace are left to TFDS.

    Args:
        name: One of `OWN`; or NAME, NAME/CONFIG, NAME:VERSION or
            NAME/CONFIG:VERSION, NAME being TFDS's or prepared in `tfds_dir`;
            or the same after NAMESPACE: (a namespace of TFDS's communities).
        tfds_dir: As for `prepared_names`.

    Raises:
        InputError: There is none, or TFDS is needed and not installed.
    """
    match = _FORM.fullmatch(name)
    if match is None:
        raise commandline.InputError(
            f"--dataset={name!r}: the form is NAME, NAME/CONFIG, NAME:VERSION "
            "or NAME/CONFIG:VERSION, as in emnist/letters:3.1.0"
        )
    dataset, namespace = match["dataset"], match["namespace"]
    if dataset in OWN and not namespace:
        if match["rest"]:
            raise commandline.InputError(
                f"--dataset={name}: {dataset} has no configs and no versions; "
                f"write --dataset={dataset}"
            )
        return
    package = _package()
    if package is None:
        raise commandline.InputError(
            f"--dataset={name} is read by TensorFlow Datasets, which is not "
            "installed: pip install tensorflow-datasets"
        )
    if namespace:
        _check_namespace(name, namespace, package)
        return
    root = data_dir(tfds_dir)
    lower = _NAME.fullmatch(dataset) is not None
    # A look at one folder answers these two; the list takes longer.
    if lower and os.path.isdir(os.path.join(package, "datasets", dataset)):
        return
    if lower and _is_prepared(os.path.join(root, dataset)):
        return
    known = tfds_names()
    # Into gs:// and the like only TFDS can look: it has the last word there.
    if dataset in known or (lower and "://" in root):
        return
    names = sorted(known.union(OWN, prepared_names(tfds_dir)))
    end = commandline.nearest(dataset.lower(), names)
    if not end.startswith("; did you mean"):
        end = (
            f": it is none of {', '.join(OWN)}, none of TFDS's {len(known)} "
            f"datasets and not prepared in {root}. TFDS's list: {_LIST}"
        )
    if not lower:
        end = " (names are in lower case)" + end
    raise commandline.InputError(f"--dataset={name} is unknown{end}")
