"""The report: whole, self-contained, of bounded size, and deaf to what strangers wrote."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
import yaml
from browser import opened
from PIL import Image
from pipeline import settings, small_config, write_config, write_table

from mmfast.cli import main
from mmfast.data import read_table
from mmfast.plugins import Waveform
from mmfast.train.config import load_config
from mmfast.train.predictions import predictions_of
from mmfast.train.prepare import column_spec
from mmfast.train.report import examples as report_examples
from mmfast.train.report import write_report
from mmfast.train.report.examples import MOST_MEDIA, SECONDS, most_wrong, picture, sound
from mmfast.train.report.modalities import SHARES, missing_curve
from mmfast.train.report.page import POLICY, STYLE, text
from mmfast.train.report.tasks import calibration
from mmfast.train.run import fit
from mmfast.train.scores import Scores

VOID = {"meta", "link", "img", "br"}
MAY_LINK = {"a", "img", "audio", "link", "use", "image"}
EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>$x$&amp;"


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on what is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.links = [], [], [], []
        self.events, self.styles, self.in_style = [], [], False
        self.feed(html)
        self.close()
        assert self.open == [], "not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append((tag, value))
            if name.startswith("on"):
                self.events.append((tag, name))
            if name == "style":
                self.styles.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(path):
    """The page, after the proof that it needs nothing but itself."""
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.events == []
    for tag, link in page.links:
        assert tag in MAY_LINK, (tag, link)
        assert link.startswith(("data:", "#")), (tag, link)
    for style in page.styles:
        assert "@import" not in style
        assert all(target.startswith("#") for target in re.findall(r"url\(\W?([^)]+)", style))
    for names in re.findall(r' class="([^"]+)"', html):
        for name in names.split():
            assert re.search(rf"\.{name}\b", STYLE), f"no style for {name}"
    assert f'content="{POLICY}"' in html
    assert "http-equiv" not in html.replace('http-equiv="Content-Security-Policy"', "", 1)
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    return fit(small_config(folder, "train.epochs=4", "model.fusion={name: attention}"))


def test_every_part_is_there(run):
    path = write_report(run.path)
    page = read(path)
    assert write_report(run.path, path.with_name("again.html")).read_text() == path.read_text()
    for part in (
        "Test metrics", "Learning", "Confusion matrix", "ROC curves", "Precision and recall",
        "Calibration", "By class", "without text", "without vector", "lack a modality",
        "Fusion weights", "Most wrong", "forward", "instruction sets", "lr: 0.01",
        "resamples", "chose the checkpoint",
    ):  # fmt: skip
        assert part in page.text, part
    accuracy = run.evaluate()["accuracy"]
    assert f"{accuracy:.4g}" in page.text
    assert page.tags.count("svg") == 8
    assert page.tags.count("h2") == 9


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["task.type=binary", "data.label=positive"], ["Confusion matrix", "f1", "a positive"]),
        (["task.type=multilabel", "data.label=tags"], ["f1_micro", "By class", "whiskers"]),
        (["task.type=regression", "data.label=value"], ["Residuals", "Predicted", "true value"]),
        (
            ["task.type=retrieval", "train.batch_size=4"],
            ["text_to_vector_recall_at_5", "by chance", "by its text: rank"],
        ),
        (["data.split.fractions=[0.8, 0.2, 0]"], ["no test rows", "Time"]),
        (["model.fusion={name: weighted_sum}", "data.group=group"], ["The same for", "groups"]),
    ],
    ids=["binary", "multilabel", "regression", "retrieval", "no test rows", "groups"],
)
def test_every_task(tmp_path, overrides, parts):
    run = fit(small_config(tmp_path, "train.epochs=2", *overrides))
    page = read(write_report(run.path))
    for part in parts:
        assert part in page.text, part


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A run on pictures, sounds, numbers and texts whose every name and text is an attack."""
    folder = tmp_path_factory.mktemp("strange")
    generator = np.random.default_rng(0)
    rows = []
    for row in range(40):
        image = folder / f"a' onload=x {row}.png"
        side = 30 if row % 2 else 500
        Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)).save(
            image, compress_level=1
        )
        audio = folder / f'b"><script>{row}.wav'
        soundfile.write(audio, generator.normal(size=9000) / 9, 12345)
        rows.append(
            {
                "image": image.name,
                "audio": audio.name,
                "text": f"{EVIL} \u202e\x07 {row} {'long ' * 400}",
                EVIL: row,
                "label": [EVIL, "_b", "c$"][row % 3],
            }
        )
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    values = settings(folder)
    values["data"] |= {
        "source": str(folder / "table.csv"),
        "columns": {
            "image": {"column": "image", "modality": "image"},
            "text": {"column": "text", "modality": "text"},
            "<b>audio": {"column": "audio", "modality": "audio"},
            "tab": {"fields": [EVIL], "modality": "tabular"},
        },
    }
    values["model"]["encoders"] = {
        "image": {"name": "image_convnet", "options": {"image_size": 16}},
        "text": {"name": "text_hashed", "options": {"buckets": 64}},
        "<b>audio": {"name": "audio_convnet"},
        "tab": {"name": "tabular_mlp"},
    }
    values["model"]["fusion"] = {"name": "gated", "out_features": 8}
    values["train"]["epochs"] = 1
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return fit(load_config(path))


def test_what_strangers_wrote_is_text_and_the_page_stays_small(strange):
    path = write_report(strange.path, examples=100)
    page = read(path)
    assert "<script>alert(1)</script>" in page.text
    assert "<b>audio" in page.text
    assert "\u202e" not in page.text
    assert "_b" in page.text
    assert page.tags.count("audio") == page.tags.count("img") == len(predictions_of(strange.path))
    assert path.stat().st_size < 4 / 3 * MOST_MEDIA + 1_500_000


def test_a_browser_shows_it_in_silence_and_asks_nobody(strange, run):
    for told in (strange, run):
        assert opened(write_report(told.path)) == ([], [])


def test_the_browser_would_tell(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><html><body><script>console.error('look')</script>"
        "<img src='http://evil.example/x.png'><img src='http://127.0.0.1:4/x.png'></body></html>"
    )
    said, asked = opened(page)
    assert len(said) == 1
    assert "look" in said[0]
    assert sorted(asked) == ["127.0.0.1", "evil.example"]
    # The policy of the reports stops both, and says so.
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page.write_text(page.read_text().replace("<body>", f"<head>{policy}</head><body>"))
    said, asked = opened(page)
    assert len(said) == 3
    assert all("Content Security Policy" in line for line in said)
    assert asked == []


def cards(run, count=100):
    found = predictions_of(run.path)
    data = run.config.data
    specs = {name: column_spec(run.config, name) for name in run.config.model.encoders}
    return most_wrong(found, Scores.of(found), read_table(data.source), specs, count)


def test_media_end_where_the_page_is_full(strange, monkeypatch):
    whole = cards(strange)
    monkeypatch.setattr(report_examples, "MOST_MEDIA", 100_000)
    some = cards(strange)
    assert "left out, the page is large enough" in some
    assert 0 < some.count("base64,") < whole.count("base64,")
    assert len(some) < 4 / 3 * 100_000 + 100_000 < len(whole)


def test_a_cell_that_is_gone_is_told(strange):
    for path in strange.path.parent.glob("*.png"):
        path.unlink()
    shown = cards(strange, 3)
    assert shown.count("image: not shown") == 3
    assert "no such file" in shown


def test_text_is_escaped_cut_and_fit_for_html():
    assert text("<a href='x'>&\"") == "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"
    assert text("abcdef", 3) == "abc … (6 characters)"
    assert text("a\x00\ud800\u202eb") == "a\ufffd\ufffd\ufffdb"
    assert text("👩‍🚀 größer 中") == "👩‍🚀 größer 中"


def test_pictures_are_small_files_of_what_was_seen():
    large = Image.effect_mandelbrot((900, 600), (-2, -1, 1, 1), 50).convert("RGB")
    data, kind, small = picture(large)
    assert (kind, small) == ("jpeg", False)
    assert len(data) < 60_000
    few = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    data, kind, small = picture(few)
    assert (kind, small) == ("png", True)
    found = np.asarray(Image.open(io.BytesIO(data)))
    assert (found == few.permute(1, 2, 0).numpy()).all()
    data, _, _ = picture(few.float() / 255)
    assert (np.asarray(Image.open(io.BytesIO(data))) == few.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("rate", [8000, 16000, 12345])
def test_sounds_are_what_was_heard_and_cut(rate):
    times = torch.arange(int(12.0 * rate)) / rate
    tone = torch.sin(2 * torch.pi * 440 * times) / 2
    data, kind = sound(Waveform(torch.stack([tone, tone]), rate))
    heard, found_rate = soundfile.read(io.BytesIO(data))
    assert len(data) < 130_000
    assert kind == "mpeg"
    assert len(heard) / found_rate == pytest.approx(SECONDS, abs=0.2)
    spectrum = np.abs(np.fft.rfft(heard[: 4 * found_rate]))
    assert spectrum.argmax() / 4 == pytest.approx(440, abs=2)


def test_modalities_stand_in_the_order_of_the_configuration(tmp_path):
    """The file of predictions keeps another one: that of the alphabet."""
    values = settings(tmp_path)
    for place in (values["model"]["encoders"], values["data"]["columns"]):
        place["a vector"] = place.pop("vector")
    write_table(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    run = fit(load_config(tmp_path / "config.yaml", ["train.epochs=1"]))
    written = [write_report(run.path, tmp_path / f"{n}.html").read_text() for n in range(2)]
    assert written[0] == written[1]
    found = predictions_of(run.path)
    assert found.about.modalities == ("text", "a vector")
    assert list(found.without) == ["a vector", "text"]
    there = found.present.sum(0).tolist()
    assert there[0] != there[1]
    for name, count in zip(found.about.modalities, there, strict=True):
        row = re.search(rf"<tr><td>without {name}</td>.*?</tr>", written[1], re.DOTALL).group()
        assert f">{count} of {len(found)}<" in row


def test_robustness_goes_from_all_to_none(run):
    found = predictions_of(run.path)
    curve = missing_curve(found, "text", "accuracy")
    assert curve.shape[0] == len(SHARES)
    assert (curve[0] == Scores.of(found).point("accuracy")).all()
    assert (curve[-1] == Scores.of(found, "text").point("accuracy")).all()
    assert (curve == missing_curve(found, "text", "accuracy")).all()


def test_calibration_by_hand():
    about = predictions_about()
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.5, 0.0]])
    said, came, rows = calibration(Scores(about, logits, torch.tensor([0, 0, 0])))
    sure = float(torch.tensor([2.0, 0.0]).softmax(0)[0])
    assert rows[8] == 2
    assert said[8] == pytest.approx(sure)
    assert came[8] == 0.5
    assert (rows[6], came[6]) == (1, 1.0)


def predictions_about():
    from mmfast.train.predictions import About

    return About("multiclass", "", "accuracy", ("a",), ("x", "y"), 0.0, 1.0, "", None)


def test_training_ends_with_a_report(tmp_path, capsys):
    config = write_config(tmp_path)
    assert main(["train", str(config), "train.epochs=1"]) == 0
    assert "report.html" in capsys.readouterr().out
    read(tmp_path / "run" / "report.html")
    assert (
        main(
            [
                "train",
                str(config),
                "train.epochs=1",
                "run.dir=" + str(tmp_path / "b"),
                "--no-report",
            ]
        )
        == 0
    )
    assert not (tmp_path / "b" / "report.html").exists()


def test_a_report_that_fails_loses_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmfast.train.report.write_report", lambda *a, **k: 1 / 0)
    assert main(["train", str(write_config(tmp_path)), "train.epochs=1"]) == 0
    told = capsys.readouterr()
    assert "the report could not be written: division by zero" in told.err
    assert "trained:" in told.out
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_the_command_writes_where_it_is_told(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(run.path), "-o", str(out), "--examples", "0"]) == 0
    page = read(out)
    assert "Most wrong" not in page.text
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(["report", str(run.path), "-o", str(tmp_path / "page.txt")]) == 1
    assert "must end in .html" in capsys.readouterr().err


def test_time_is_counted_by_part(run):
    state = json.loads((run.path / "last" / "state.json").read_text())["progress"]
    seconds, history = state["seconds"], state["history"]
    assert set(seconds) == {"data", "forward", "backward", "step", "evaluation", "checkpoints"}
    assert all(value > 0 for value in seconds.values())
    without_checkpoints = sum(seconds.values()) - seconds["checkpoints"]
    assert without_checkpoints == pytest.approx(sum(r["seconds"] for r in history), rel=0.5)
