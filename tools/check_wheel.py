"""Checks that a wheel holds every module, page and recipe of this checkout.

python tools/check_wheel.py dist/simmatch_tf-0.1.0-py3-none-any.whl
"""

import pathlib
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    """Ends with an error that names missing and unexpected files."""
    names = set(zipfile.ZipFile(sys.argv[1]).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for ending in ("css", "html", "js", "py")
        for path in (ROOT / "simmatch_tf").rglob(f"*.{ending}")
    } | {
        f"simmatch_tf/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "configs").rglob("*.cfg")
    }
    packaged = {name for name in names if ".dist-info/" not in name}
    if wanted != packaged:
        sys.exit(
            f"{sys.argv[1]}: missing {sorted(wanted - packaged)}, "
            f"unexpected {sorted(packaged - wanted)}"
        )
    print(f"{sys.argv[1]}: {len(packaged)} files, all that belong there")


if __name__ == "__main__":
    main()
