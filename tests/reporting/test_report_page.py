import base64
import html
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import PIL.Image
import pytest

import simmatch_tf
from simmatch_tf import report
from simmatch_tf.flags.errors import InputError
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.reporting import report_page
from simmatch_tf.serving import scoring
from tests.reporting import written

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
NOTHING = report_page.Inspections({}, [], {})
EVIL = "<script>alert(1)</script>&\"'$\\frac{"


def jpeg(colour):
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(file, "JPEG")
    return file.getvalue()


def shown(name, true, predicted, confidence, near="dog"):
    neighbor = {"slot": 3, "id": "7", "class": near, "similarity": 0.876}
    return scoring.InspectedImage(
        name, true, predicted, confidence, 0.1, jpeg("red"), [neighbor]
    )


def looked(name, **changes):
    """Returns inspections as of `serving.scoring`."""
    values = {
        "report": {
            "calibration_error": 0.05,
            "confusion": [[60, 10], [20, 10]],
        },
        "scored_on": "test",
        "images": 100,
        "errors": 30,
        "wrong": [shown("12", "cat", "dog", 0.9)],
        "uncertain": [shown("34", "dog", "dog", 0.51)],
        "neighbors": {3: jpeg("blue")},
        "why_not": "",
    }
    inspection = scoring.Inspection(**{**values, **changes})
    return report_page.Inspections({name: inspection}, [name], {})


def test_one_run(tmp_path):
    groups = written.groups(written.run(tmp_path / "a"))
    text = report_page.page(groups, looked("a"))
    for part in (
        "<h1>a</h1>",
        "70.0 (1)",
        "60.0 / 70.0",
        "5.0",
        "No known problem shows in this run, as far as that can be told.",
        "100 test images of digits",
        "30 of 100 test images are wrong",
        "Most often confused",
        "--alpha=0.9",
        "tensorflow 2.21.0",
        'class="small run0slot3"',
        "0.88",
        "Content-Security-Policy",
    ):
        assert part in text, part
    assert "How the runs differ" not in text
    assert "not finished" not in text
    # Panels: accuracy, three of Figure 4, total loss; the confusion matrix.
    assert text.count('<img src="data:image/svg+xml;base64,') == 6
    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert text.count(".run0slot3 {") == 1
    # It loads nothing, and links to the paper alone.
    assert re.findall(r"https?:[^\"]*", text) == [
        "https://arxiv.org/abs/2203.06915"
    ]
    assert not re.search(r"<script|@import|src=\"(?!data:)", text)
    for picture in re.findall(r"svg\+xml;base64,([^\"]+)", text):
        xml.etree.ElementTree.fromstring(base64.b64decode(picture))
    assert 'alt="right, above the threshold, over steps"' in text


def test_several_runs(tmp_path):
    words = [
        written.run(tmp_path / f"sim{s}", 0.7 + 0.1 * s, seed=s) for s in (0, 1)
    ]
    words.append(f"Low={written.run(tmp_path / 'low', 0.6, alpha=0.5)}")
    words.append(written.run(tmp_path / "part", None, lambda_u=2.0, steps=90))
    text = report_page.page(written.groups(*words), NOTHING)
    assert "75.0 ± 7.1 (2)" in text and "lead of sim, 95 %" in text
    assert "worst</th>" in text and "Worst: lowest top-1 of these runs" in text
    assert "part is not finished: it has reached step 30 of 90" in text
    assert "--lambda_u" in text and "Thin lines are single runs" in text
    assert text.count('<i class="key"') >= 4
    assert "Errors</h2>" not in text
    assert "No known problem shows in these runs, as far as" in text


def test_runs_on_changed_images(tmp_path, capsys):
    words = [
        written.run(
            tmp_path / f"a{seed}",
            score,
            dataset="folder",
            data_dir=str(tmp_path / "none"),
            seed=seed,
            data={"test/<b>/0.png": content},
        )
        for seed, (score, content) in enumerate(((0.2, "old"), (0.9, "new")))
    ]
    command(*words, f"--output={tmp_path}/r.html", "--images=0")
    out = capsys.readouterr().out
    text = (tmp_path / "r.html").read_text()
    assert "20.0 (1)" in out and "90.0 (1)" in out
    changes = "1 is changed (test/<b>/0.png)"
    said = f"a1 is not grouped with a0: its data are others: {changes}."
    assert said in out and html.escape(said) in text
    assert "No lead is given" in out and "No lead is given" in text


def test_runs_that_are_not_measured(tmp_path):
    """Beside one that is; and alone."""
    folders = [written.run(tmp_path / "a"), written.run(tmp_path / "b", 0.5)]
    path = folders[1] / "results.json"
    content = json.loads(path.read_text())
    for figures in (content["student"], content["ema"]):
        for each in figures.values():
            each["top1"] = None
    content |= {"top1": None, "top5": None, "scored_on": None}
    content |= {"test_images": 0, "lead": None}
    content["baselines"] = [
        {"name": "SVM (cross-validation)", "top1": 0.4, "interval": [0.3, 0.5]}
    ]
    path.write_text(json.dumps(content))
    (folders[1] / "flags.cfg").write_text(
        (folders[1] / "flags.cfg").read_text() + "--alpha=0.5\n"
    )
    for shown in (folders, folders[1:]):
        groups = written.groups(*shown)
        text = report_page.page(groups, NOTHING)
        assert "The accuracy of b is not known: it has neither test" in text
        assert "SVM (cross-validation)" in text and "40.0" in text
        assert "None" not in text
        table = report_page.result(groups, {})
        assert column(table, "top-1, % (runs)")[-1] == "–"
        assert column(report_page.each_run(groups[-1].runs), "top-1, %") == [
            "–"
        ]


def test_what_temperatures_were_fitted_on(tmp_path):
    folders = [written.run(tmp_path / name) for name in "abcd"]
    for folder, fitted in zip(
        folders,
        ({"fitted_on": "test"}, {"fitted_on": "test"}, {}),
        strict=False,
    ):
        content = json.loads((folder / "results.json").read_text())
        content["ema"]["calibration"] = {
            "temperature": 1.5,
            "images": 100,
            **fitted,
        }
        (folder / "results.json").write_text(json.dumps(content))
    groups = [written.groups(folder)[0] for folder in folders]
    assert report_page.temperatures(groups) == [
        "on 100 test images, error by cross-fitting (a, b)",
        "on 100 validation images (c)",
    ]
    text = " ".join(report_page.page(groups, NOTHING).split())
    assert "with a temperature that was fitted on 100 test images" in text


def test_an_unfinished_run(tmp_path):
    text = report_page.page(
        written.groups(written.run(tmp_path / "a", None, steps=90)), NOTHING
    )
    assert "has no result yet" in text and "right, above the threshold" in text
    assert "of the last checkpoint" not in text


def test_scalars_of_a_method_outside_the_package(tmp_path):
    curves = {"rotation/accuracy": {10: 0.25, 20: 0.5}, **written.CURVES}
    groups = written.groups(written.run(tmp_path / "a", curves=curves))
    text = report_page.page(groups, NOTHING)
    assert "<summary>Other scalars</summary>" in text
    assert 'alt="rotation/accuracy, over steps"' in text
    names = report_page.save_figures(groups, NOTHING, tmp_path / "f")
    assert names[-1] == "others.png"
    # Without such scalars there is no such chart.
    groups = written.groups(written.run(tmp_path / "b"))
    assert "Other scalars" not in report_page.page(groups, NOTHING)


def test_a_supervised_run_without_memory(tmp_path):
    curves = {"loss/total": {10: 1.0}, "test/ema_top1": {30: 0.7}}
    folder = written.run(tmp_path / "a", curves=curves, algorithm="supervised")
    item = scoring.InspectedImage("1", "cat", "dog", 0.9, 0.1, None, [])
    inspections = looked(
        "a", wrong=[item], uncertain=[item], neighbors={}, why_not="no memory"
    )
    text = report_page.page(written.groups(folder), inspections)
    assert "right, above the threshold" not in text
    assert "the share of unlabeled images whose" not in text
    assert "top-1, evaluation weights" in text
    assert "Labeled images are not shown beside them: no memory." in text
    assert 'class="neighbors"' not in text and 'class="none"' in text


def test_without_scalars_or_images(tmp_path):
    folder = written.run(tmp_path / "a", curves=None)
    why = report_page.Inspections({}, [], {"a": "cifar10 is not prepared here"})
    text = report_page.page(written.groups(folder), why)
    assert "a: no scalars were written" in text
    assert "a: no test images are shown: cifar10 is not prepared here" in text
    # The report of `evaluate` needs no images.
    written.evaluation(folder, [[60, 10], [15, 15]])
    text = report_page.page(written.groups(folder), why)
    assert "a: no test images are shown: cifar10 is" in text
    assert "12.3" in text and "Confusion matrix of a" in text


def test_findings(tmp_path, monkeypatch):
    def judge(config, scalars, *, step, steps, classes, images):
        assert "loss/total" in scalars
        # Those of the result, which the last run does not have.
        assert images == (None if config.seed == 2 else 100)
        assert step <= steps
        if config.seed == 1:
            return {"x": False}
        says = f"It says <{config.seed}>."
        return {"x": diagnosis.Finding("x", says, "Why.", "--threshold")}

    monkeypatch.setattr(diagnosis, "judge", judge)
    words = [written.run(tmp_path / f"sim{s}", seed=s) for s in (0, 1)]
    words.append(written.run(tmp_path / "sim2", None, seed=2))
    text = report_page.page(written.groups(*words), NOTHING)
    assert "It says &lt;0&gt;." in text and "It says &lt;2&gt;" not in text
    assert "(sim0, sim2)" in text and "Try: --threshold" in text
    assert "No known problem" not in text


def test_unknown_problems_are_listed(tmp_path):
    folder = written.run(tmp_path / "a")
    text = report_page.page(written.groups(folder), NOTHING)
    _, said = report_page._problems(written.groups(folder))
    assert all(
        html.escape(each, quote=False) in text.replace("&#39;", "'")
        for each in said
    )
    assert said == [
        "a has too few values to tell: too short, classes without labels, "
        "the input is slow, BatchNorm's averages lag.",
        "a was not checked for what is not logged by this method: no "
        "pseudo-labels, classes without pseudo-labels, collapse, prior drift, "
        "unequal labels, confident but wrong, matching waits.",
    ]
    # Without any scalars nobody knows what the method would log.
    folder = written.run(tmp_path / "b", curves=None)
    _, (said,) = report_page._problems(written.groups(folder))
    assert said.startswith("b has too few values to tell: too short, no pseu")


def test_many_classes_are_a_table(tmp_path):
    folder = written.run(tmp_path / "a")
    path = folder / "results.json"
    names = [f"class {i}" for i in range(21)]
    values = {**json.loads(path.read_text()), "class_names": names}
    path.write_text(json.dumps(values))
    counts = [[int(i == j) for j in range(21)] for i in range(21)]
    counts[7][20] = 3
    inspections = looked(
        "a", report={"calibration_error": 0, "confusion": counts}
    )
    text = report_page.page(written.groups(folder), inspections)
    assert "Confusion matrix of" not in text
    row = "<tr><td>class 7</td><td>class 20</td><td>3</td><td>75.0%</td></tr>"
    assert row in text
    names = report_page.save_figures(
        written.groups(folder), inspections, tmp_path / "f"
    )
    assert not any(name.startswith("confusion") for name in names)


def test_names_are_escaped(tmp_path):
    folder = written.run(tmp_path / "a", backbone="wrn_10_1")
    path = folder / "results.json"
    values = {**json.loads(path.read_text()), "class_names": [EVIL, r"$\bad$"]}
    path.write_text(json.dumps(values))
    item = shown(EVIL, EVIL, "dog", 0.9, near=EVIL)
    name = "<b>$&\"'"
    inspections = looked(name, wrong=[item], uncertain=[item])
    other = written.run(tmp_path / "b", alpha=0.1)
    many = written.groups(f"{name}={folder}", other)
    text = report_page.page(many, inspections)
    assert "<script" not in text and "<b>$" not in text
    assert (
        html.escape(EVIL).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        in text
    )
    report_page.save_figures(many, inspections, tmp_path / "f")
    assert (tmp_path / "f" / "confusion_b.png").exists()


def test_figures(tmp_path):
    folder = tmp_path / "figures"
    groups = written.groups(f"a/b={written.run(tmp_path / 'x')}")
    inspections = looked("a/b")
    names = report_page.save_figures(groups, inspections, folder)
    # An existing folder is written into.
    assert report_page.save_figures(groups, inspections, folder) == names
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    assert names == [
        "accuracy.png",
        "pseudo_labels.png",
        "losses.png",
        "confusion_a_b.png",
    ]
    for name in names:
        with PIL.Image.open(folder / name) as image:
            image.verify()
    with pytest.raises(InputError, match="--figures=.*cannot be written"):
        report_page.save_figures(groups, NOTHING, tmp_path / "x/flags.cfg")


def command(*words):
    flags = report.ReportConfig.from_argv(["report", *map(str, words)])
    report.main(flags)


def test_the_command_without_images(tmp_path, capsys):
    one = written.run(tmp_path / "a")
    output = tmp_path / "r.html"
    output.write_text("old")
    command(one, f"--output={output}", "--images=0", f"--figures={tmp_path}/f")
    out = capsys.readouterr().out
    assert "70.0 (1)" in out and f"Written to {output}." in out
    assert "accuracy.png, pseudo_labels.png, losses.png" in out
    assert "a: no test images are shown: --images=0" in out
    text = output.read_text()
    assert "<h1>a</h1>" in text and "--images=0" in text
    assert not (tmp_path / "r.html.tmp").exists()


def test_wrong_flags_fail_early(tmp_path):
    one = written.run(tmp_path / "a")
    (tmp_path / "file").touch()
    page = f"--output={tmp_path}/r.html"
    for words, message in (
        ([page], "--runs is missing: name a run's folder"),
        ([one], "--output is missing: name an .html file"),
        ([one, f"--output={tmp_path}/r.txt"], "must end in .html or .htm"),
        ([one, f"--output={tmp_path}/n/r.html"], "in a folder that exists"),
        ([one, page, f"--figures={tmp_path}/file"], "must be a folder"),
        ([one, page, "--images=-1"], "--images=-1: must be in"),
        ([tmp_path, page], "no run here"),
        ([one, f"a={one}", page], "is given twice"),
    ):
        with pytest.raises(InputError, match=message):
            command(*words)
    code = (
        "import sys; from simmatch_tf import report\n"
        "from simmatch_tf.flags.errors import InputError\n"
        "from simmatch_tf.report import ReportConfig\n"
        f"argv = ['report', {str(tmp_path)!r}, {page!r}]\n"
        "try: report.main(ReportConfig.from_argv(argv))\n"
        "except InputError: pass\n"
        "else: raise SystemExit('no error')\n"
        "assert not {'tensorflow', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.extra
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path):
    """All pictures decode, nothing is loaded, and the policy holds."""
    words = [written.run(tmp_path / f"sim{s}", 0.7, seed=s) for s in (0, 1)]
    words.append(written.run(tmp_path / "low", alpha=0.5))
    page = tmp_path / "report.html"
    text = report_page.page(written.groups(*words), looked("low"))
    page.write_text(text)
    said = browse(page, tmp_path / "1")
    assert (tmp_path / "1" / "shot.png").stat().st_size > 10_000
    assert "CONSOLE" not in said
    assert requests(tmp_path / "1") == set()
    # The same with a look at each picture, which the policy would forbid.
    count = text.count("<img ")
    look = (
        "<script>onload = () => { const all = [...document.images];"
        "console.log('decoded', all.length, all.filter(i => i.complete && "
        "i.naturalWidth > 0).length); }</script></body>"
    )
    free = re.sub(r"<meta http-equiv=[^>]*>", "", text)
    (tmp_path / "free.html").write_text(free.replace("</body>", look))
    said = browse(tmp_path / "free.html", tmp_path / "2")
    assert f"decoded {count} {count}" in said
    # A breach would be seen.
    bad = text.replace("</body>", look + '<img src="http://127.0.0.1:9/x">')
    (tmp_path / "bad.html").write_text(bad)
    said = browse(tmp_path / "bad.html", tmp_path / "3")
    assert said.count("Content Security Policy") >= 2 and "decoded" not in said
    assert requests(tmp_path / "3") == set()
    asks = '<img src="http://127.0.0.1:9/x">'
    (tmp_path / "asks.html").write_text(asks)
    browse(tmp_path / "asks.html", tmp_path / "4")
    assert requests(tmp_path / "4") == {"http://127.0.0.1:9/x"}


def browse(page: pathlib.Path, folder: pathlib.Path) -> str:
    """Opens a page; returns the browser's log, and takes a screenshot."""
    folder.mkdir()
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}/profile",
            "--enable-logging=stderr",
            f"--log-net-log={folder}/net.json",
            "--window-size=1280,2000",
            f"--screenshot={folder}/shot.png",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def requests(folder: pathlib.Path) -> set[str]:
    """Returns the addresses that the page made the browser load."""
    log = json.loads((folder / "net.json").read_text())
    kind = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    return {
        event["params"]["url"]
        for event in log["events"]
        if event["type"] == kind
        # What the browser asks for by itself has no page that began it.
        and event.get("params", {}).get("initiator", "not an origin")
        != "not an origin"
    }


def column(table, name):
    return [row[table[0].index(name)] for row in table[1:]]


def test_results_of_groups(tmp_path):
    """70, 80 and 90 %: mean 80, deviation 10, a lead of 5 in two pairs."""
    folders = [
        written.run(tmp_path / f"sim{s}", 0.7 + 0.1 * s, seed=s, split_seed=s)
        for s in range(3)
    ]
    folders += [
        written.run(tmp_path / f"low{s}", top1, seed=s, split_seed=s, alpha=0.5)
        for s, top1 in ((0, 0.68), (1, 0.72))
    ]
    groups = written.groups(*folders)
    reports = {
        "sim0": {"calibration_error": 0.1},
        "sim2": {"calibration_error": 0.2},
    }
    table = report_page.result(groups, reports)
    assert column(table, "run") == ["sim", "low"]
    assert column(table, "top-1, % (runs)") == [
        "80.0 ± 10.0 (3)",
        "70.0 ± 2.8 (2)",
    ]
    # 80 and 70 of 100 images.
    assert column(table, "95 % of the images") == [
        "[71.1, 86.7]",
        "[60.4, 78.1]",
    ]
    assert column(table, "lead of sim, 95 %") == ["", "+5.0 (2)"]
    # Results of an older version have none.
    assert column(table, "macro, %") == ["–", "–"]
    assert column(table, "worst") == ["70.0", "68.0"]
    assert column(table, "student / EMA") == ["70.0 / 80.0", "60.0 / 70.0"]
    assert column(table, "calibration error, %") == ["15.0", "–"]
    assert column(table, "time") == ["60 s", "60 s"]
    assert column(table, "views/s") == ["1,000", "1,000"]
    table = report_page.overview(groups)
    assert column(table, "seeds") == ["0, 1, 2", "0, 1"]
    assert column(table, "labels") == ["20 of 1,400"] * 2
    assert column(table, "algorithm") == ["simmatch, ensemble"] * 2
    table = report_page.differences(groups)
    assert table[1:] == [["--alpha", "0.9", "0.5"]]


def test_results_of_other_images_are_not_compared(tmp_path):
    one = written.run(tmp_path / "a")
    other = written.run(tmp_path / "b", dataset="cifar10")
    table = report_page.result(written.groups(one, other), {})
    assert not any("lead" in name for name in table[0])


def test_results_on_changed_test_images_are_not_compared(tmp_path):
    def run(name, top1, **changes):
        changes = {"dataset": "folder", "data_dir": "/data/x", **changes}
        return written.run(tmp_path / name, top1, **changes)

    old, new = ({"test/a/0.png": content} for content in ("old", "new"))
    one, same = run("a", 0.7, data=old), run("b", 0.6, data=old, alpha=0.5)
    other, again = run("c", 0.8, data=new, alpha=0.5), run("d", 0.9, data=new)
    groups = written.groups(one, same)
    assert any("lead" in n for n in report_page.result(groups, {})[0])
    assert report_page.not_compared(groups) == []
    groups = written.groups(one, other)
    table = report_page.result(groups, {})
    assert not any("lead" in name for name in table[0])
    assert report_page.not_compared(groups) == [
        "No lead is given: the results are not all of the same images."
    ]
    # Runs of two seeds on two sets of images have no mean.
    groups = written.groups(one, again)
    assert column(report_page.result(groups, {}), "top-1, % (runs)") == [
        "70.0 (1)",
        "90.0 (1)",
    ]
    assert "d is not grouped with a" in report_page.not_compared(groups)[0]


def test_unfinished_runs(tmp_path):
    groups = written.groups(written.run(tmp_path / "a", None, steps=1200))
    table = report_page.result(groups, {})
    assert table[1:] == [["a", *"––––––", "1,200", "–", "–"]]
    assert report_page.unfinished(groups) == [
        "a is not finished: it has reached step 30 of 1,200, and has no result "
        "yet."
    ]
    table = report_page.each_run(groups[0].runs)
    assert column(table, "steps") == ["30 of 1,200"]


def test_times(tmp_path):
    folder = written.run(tmp_path / "a")
    session = {"first_step": 1, "last_step": 10, "seconds": 10_000.0}
    session["views_per_second"] = 500.0
    later = {**session, "first_step": 21, "last_step": 30, "seconds": 20.0}
    (folder / "timing.json").write_text(json.dumps([session, later]))
    groups = written.groups(folder)
    # Steps 11 to 20 are in none.
    table = report_page.result(groups, {})
    assert column(table, "time") == ["over 2 h 47 min"]


def test_confusion_of_a_group(tmp_path):
    folders = [
        written.run(tmp_path / f"sim{seed}", seed=seed) for seed in (0, 1, 2)
    ]
    written.evaluation(folders[0], [[60, 10], [15, 15]])
    written.evaluation(folders[1], [[50, 20], [0, 30]])
    (group,) = written.groups(*folders)
    reports = {r.name: r.evaluation for r in group.runs if r.evaluation}
    counts = report_page.confusion(group, reports)
    assert counts == [[110, 30], [15, 45]]
    assert report_page.pairs(counts, ["cat", "dog"])[1:] == [
        ["cat", "dog", "30", "21.4%"],
        ["dog", "cat", "15", "25.0%"],
    ]
    assert report_page.worst(counts, ["cat", "dog"], runs=2)[1:] == [
        # Of 30 and 70 images, which two runs were scored on.
        ["dog", "75.0%", "[57.3, 87.0]", "60"],
        ["cat", "78.6%", "[67.6, 86.6]", "140"],
    ]
    assert report_page.confusion(group, {}) is None
    # One whose classes are others is not added.
    text = (folders[1] / "results.json").read_text()
    (folders[1] / "results.json").write_text(text.replace("dog", "cow"))
    (group,) = written.groups(*folders)
    assert report_page.confusion(group, reports) == [[60, 10], [15, 15]]


def test_classes_without_errors_or_images():
    counts = [[3, 0, 0], [0, 0, 0], [1, 0, 3]]
    assert report_page.worst(counts, "abc")[1:] == [
        ["c", "75.0%", "[30.1, 95.4]", "4"]
    ]
    assert report_page.pairs(counts, "abc")[1:] == [["c", "a", "1", "25.0%"]]


def test_runs_are_paired_by_the_images_that_are_labeled(tmp_path):
    """--split_seed has no effect if a file lists the labeled images."""
    folders = [
        written.run(
            tmp_path / f"sim{seed}",
            0.9,
            split={"labeled": [seed, 7]},
            seed=0,
            split_seed=seed,
        )
        for seed in (0, 3)
    ]
    own = {"alpha": 0.5, "labels": None, "split_file": "a/split.json"}
    folders.append(
        written.run(tmp_path / "low", 0.8, split={"labeled": [3, 7]}, **own)
    )
    first, other, third = report_page.scores(written.groups(*folders))
    assert [first.row, other.row, third.row] == ["sim", "sim", "low"]
    assert third.seed == other.seed != first.seed
    seeds = column(report_page.overview(written.groups(*folders)), "seeds")
    assert seeds == ["0, 0 (split 3)", "0"]


def test_macro_accuracy_beside_top1(tmp_path):
    folder = written.run(tmp_path / "a", 0.7)
    path = folder / "results.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "macro_accuracy": 0.612}))
    groups = written.groups(folder)
    assert column(report_page.result(groups, {}), "macro, %") == ["61.2"]
    table = report_page.each_run(groups[0].runs)
    assert column(table, "macro, %") == ["61.20"]
    assert column(table, "95 %") == ["[60.4, 78.1]"]


def test_shares_of_the_classes_stand_beside_the_prior(tmp_path):
    shares = {
        f"class_share/{name}": dict.fromkeys(range(10, 31, 10), share)
        for name, share in (("cat", 0.8), ("dog", 0.2))
    }
    used = {  # 30 % of all pass the threshold
        f"class_used/{name}": dict.fromkeys(range(10, 31, 10), share)
        for name, share in (("cat", 0.27), ("dog", 0.03))
    }
    split = {
        "class_names": ["cat", "dog"],
        "labels": [0] * 15 + [1] * 5,
        "class_prior": [0.75, 0.25],
    }
    folders = [
        written.run(
            tmp_path / "labeled",
            curves=written.CURVES | shares | used,
            split=split,
            class_prior="labeled",
        ),
        written.run(tmp_path / "older"),
        written.run(
            tmp_path / "unaligned",
            curves=written.CURVES | shares,
            split={**split, "class_prior": None},
            algorithm="fixmatch",
        ),
    ]
    groups = written.groups(*folders)
    (name, table), (other, unaligned) = report_page.class_shares(groups)
    assert (name, other) == ("labeled", "unaligned")
    assert table == [
        [
            *("class", "labeled images", "their share", "prior"),
            *("pseudo-labels", "used ones"),
        ],
        ["cat", "15", "75.0%", "75.0%", "80.0%", "90.0%"],
        ["dog", "5", "25.0%", "25.0%", "20.0%", "10.0%"],
    ]
    assert column(unaligned, "used ones") == ["–", "–"]
    assert column(unaligned, "prior") == ["–", "–"]
    text = report_page.page(groups, NOTHING)
    assert "<h2>Classes of the pseudo-labels</h2>" in text
    # They are in the table, not curves of their own.
    assert "class_share" not in text and "class_used" not in text
    assert not any(
        "class_" in each["chart"].title for each in report_page._charts(groups)
    )
    alone = written.groups(folders[1])
    assert "Classes of the pseudo-labels" not in report_page.page(
        alone, NOTHING
    )


def test_a_run_that_was_too_short(tmp_path):
    """Six accuracies of 100 images each, to the start of the cool-down."""
    rising = {"test/ema_top1": {3 * n: 0.2 + 0.07 * n for n in range(1, 11)}}
    flags = {"schedule": "cooldown", "cooldown": 0.3}
    flags |= {"steps": None, "minutes": 12.0, "measured_steps": 30}
    for name, curves, shows in (
        ("rising", rising, True),
        ("flat", {"test/ema_top1": dict.fromkeys(range(3, 31, 3), 0.6)}, False),
    ):
        # It measures what results.json says, which the flags do not.
        folder = written.run(tmp_path / name, None, curves=curves, **flags)
        result = written.result(0.7, simmatch_tf.Config(labels=20, steps=30))
        result.write(folder / "results.json")
        text = report_page.page(written.groups(folder), NOTHING)
        assert ("--extend_minutes=12." in text) == shows
        assert ("still rising when the learning rate" in text) == shows


# ------------------------------------------------------------- baselines ---


def add_baselines(folder, top1, interval):
    """Baselines of 50 % and 40 % beside a result, and its lead over them."""
    path = folder / "results.json"
    lead = {"over": "SVM <x>", "images": 100, "top1": top1}
    baselines = [
        {"name": name, "top1": share, "interval": [share - 0.1, share + 0.1]}
        for name, share in (("SVM <x>", 0.5), ("other", 0.4))
    ]
    content = json.loads(path.read_text())
    content |= {"baselines": baselines, "lead": {**lead, "interval": interval}}
    path.write_text(json.dumps(content))
    return folder


def test_baselines_beside_results(tmp_path):
    ahead, behind = (written.run(tmp_path / f"s{s}", seed=s) for s in (0, 1))
    add_baselines(ahead, 0.2, [0.1, 0.3])
    add_baselines(behind, -0.1, [-0.2, -0.05])
    plain = written.run(tmp_path / "plain", alpha=0.5)
    groups = written.groups(ahead, behind, plain)
    table = report_page.result(groups, {})
    assert column(table, "best baseline, % (runs)") == ["50.0 ± 0.0 (2)", "–"]
    table = report_page.baselines(groups)
    assert table[1:] == [
        ["s0", "SVM <x>", "50.0", "[40.0, 60.0]", "+20.0 [+10.0, +30.0]"],
        ["s0", "other", "40.0", "[30.0, 50.0]", ""],
        ["s1", "SVM <x>", "50.0", "[40.0, 60.0]", "-10.0 [-20.0, -5.0]"],
        ["s1", "other", "40.0", "[30.0, 50.0]", ""],
    ]
    text = report_page.page(groups, NOTHING)
    assert "Baselines</h3>" in text and "SVM &lt;x&gt;" in text
    # Only one of the two runs is told to try something.
    (entry,) = report_page._problems(groups)[0]
    assert entry["runs"] == ["s1"] and "--steps=60" in entry["finding"].turn
    assert "is not ahead of the best baseline" in text


def test_without_baselines_there_is_no_table(tmp_path):
    groups = written.groups(written.run(tmp_path / "a"))
    assert report_page.baselines(groups) is None
    assert "Baselines</h3>" not in report_page.page(groups, NOTHING)
    assert not [t for t in report_page.result(groups, {})[0] if "baseline" in t]
