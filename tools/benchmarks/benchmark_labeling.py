"""Measures the labeling page on a folder of many images.

    python tools/benchmarks/benchmark_labeling.py --images=photos

Starts `label` several times; the answers go into a temporary folder. Prints, in
seconds: from the command to the address, to the first response and, where there
is a Chromium, to the first image on show; then a script presses a key as soon
as an image is shown, up to the fortieth answer. On a machine that is busy with
other work, the time on a processor says more than that by the clock. With
--order=chosen, the first start computes features, which others find. Without
--images, 10,000 JPEG files of 640×427 pixels are written first.
"""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import chromium
import PIL.Image
from sklearn import datasets

ANSWERS = 40
READY = "state && !busy && (!view || shown === view.index)"


def write_photographs(folder: pathlib.Path, count: int) -> None:
    """Writes scikit-learn's two photographs, each file a little brighter."""
    photographs = [
        PIL.Image.fromarray(image)
        for image in datasets.load_sample_images().images
    ]
    folder.mkdir()
    for number in range(count):
        image = photographs[number % 2]
        gain = 0.7 + 0.6 * number / count
        image = image.point(lambda value, gain=gain: min(255, value * gain))
        image.save(folder / f"{number:05}.jpg", quality=80)


def start(
    images: pathlib.Path, labels: pathlib.Path, order: str
) -> tuple[subprocess.Popen, str]:
    """Starts the command; returns it with the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "simmatch_tf.label", f"--images={images}"]
        + [f"--labels={labels}", "--classes=flower,temple", "--verbosity=-2"]
        + [f"--order={order}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if match := re.search(r"http://\S+", line):
            return process, match[0]
    sys.exit("error: the command printed no address")


def first_response(address: str) -> None:
    """Asks for the first image, as the page does."""
    start, _, token = address.partition("#token=")
    request = urllib.request.Request(
        f"{start}api/view",
        json.dumps({"browser": "benchmark"}).encode(),
        {"X-Label-Token": token, "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).read()


def processor_seconds(process: subprocess.Popen) -> float:
    """Returns the time that a process has spent on processors so far."""
    text = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
    ticks = text.rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def press_keys(page: chromium.Page) -> list[float]:
    """Answers until the goal; returns the seconds of each answer."""
    keys = page.value("state.classes.map((each) => each.key)")
    seconds = []
    while page.value("Boolean(view)"):
        begin = time.perf_counter()
        page.key(random.choice(keys))
        page.wait(READY)
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure(
    images: pathlib.Path, repeats: int, order: str, folder: pathlib.Path
) -> None:
    """Measures, and prints a line for each quantity."""
    opened: dict[str, list[float]] = {}

    def note(name: str, begin: float) -> None:
        opened.setdefault(name, []).append(time.perf_counter() - begin)

    for number in range(repeats):
        begin = time.perf_counter()
        process, address = start(images, folder / f"{number}.jsonl", order)
        note("command to address", begin)
        first_response(address)
        note("command to first response", begin)
        used = opened.setdefault("  of it, on a processor", [])
        used.append(processor_seconds(process))
        process.terminate()
        process.wait()
    answers: list[float] = []
    if chromium.PROGRAM is not None:
        with chromium.Browser(folder / "profile") as browser:
            for number in range(repeats):
                begin = time.perf_counter()
                process, address = start(
                    images, folder / f"b{number}.jsonl", order
                )
                page = chromium.Page(browser, address)
                page.wait(READY)
                note("command to first image on show", begin)
                answers += press_keys(page)
                note(f"command to answer {ANSWERS}", begin)
                process.terminate()
                process.wait()
    for name, values in opened.items():
        print(
            f"{name:32} median {statistics.median(values):6.2f}  "
            f"largest {max(values):6.2f}  of {len(values)}"
        )
    if answers:
        answers.sort()
        print(
            f"{'key to next image on show':32} median "
            f"{statistics.median(answers):6.3f}  95 % "
            f"{answers[int(0.95 * len(answers))]:6.3f}  of {len(answers)}"
        )


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--order", default="random", help="as for label")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images = flags.images
        if images is None:
            images = pathlib.Path(name) / "photographs"
            write_photographs(images, flags.count)
        folder = pathlib.Path(name)
        measure(images.resolve(), flags.repeats, flags.order, folder)


if __name__ == "__main__":
    main()
