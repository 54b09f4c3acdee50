"""Builds data/mosi_like: feature sequences of words and voices, and a number to predict.

It has the form of CMU-MOSI, which cannot be redistributed: for each utterance a sequence of word
features and sequences of acoustic features, of different lengths, some missing, and one real
number. The content is another. The utterances are the descriptions of the Tux Paint stamps (Debian
package ``tuxpaint-stamps-default``, see build_tuxpaint.py):

* ``words``: the English text, a vector of 64 letter trigrams, hashed, for each word;
* ``spanish``, ``russian``: recordings of the description in these languages, by two voices, 20
  log-mel bands 25 times a second; not every description has both;
* ``seconds``: how long the recording of the French description is, which no modality contains: what
  a dubbing studio has to estimate;
* ``group``: the English text, so that equal ones stay on one side of a split.

No feature is learned. The same package gives the same bytes, up to the rounding of numpy's FFT.

    python scripts/build_mosi_like.py
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from build_tuxpaint import PACKAGE, STAMPS
from packages import PackageError, Row, command, debian_package, write_table
from rich.progress import track

FIELDS = ("words", "spanish", "russian", "seconds", "group")
VOICES = {"spanish": "es", "russian": "ru"}
TARGET = "fr"
TRIGRAMS = 64
BANDS, RATE, WINDOW = 20, 25, 0.05  # bands; frames a second; seconds that a frame looks at
LOWEST, HIGHEST = 80.0, 7000.0  # Hz


def word_features(text: str) -> np.ndarray:
    """Float16 (words, TRIGRAMS): how often each bucket of letter trigrams occurs in a word."""
    words = re.findall(r"\w+", text.lower()) or [text]
    counts = np.zeros((len(words), TRIGRAMS), dtype=np.float16)
    for row, word in zip(counts, words, strict=True):
        marked = f"<{word}>"
        for start in range(len(marked) - 2):
            row[zlib.crc32(marked[start : start + 3].encode()) % TRIGRAMS] += 1
    return counts


def voice_features(samples: np.ndarray, rate: int) -> np.ndarray:
    """Float16 (frames, BANDS): the logarithm of the energy in each mel band."""
    step, size = round(rate / RATE), round(rate * WINDOW)
    padded = np.pad(samples, (0, size + step))
    starts = range(0, max(1, len(samples)), step)
    frames = np.stack([padded[start : start + size] for start in starts]) * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2
    return np.log10(power @ mel_bands(rate, size).T + 1e-6).astype(np.float16)


def mel_bands(rate: int, size: int) -> np.ndarray:
    """Triangles (BANDS, size // 2 + 1), equally far apart on the mel scale of O'Shaughnessy."""
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / rate)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.clip(np.minimum(rising, falling), 0, None)


def recording(text: Path, language: str) -> Path:
    """Where the description of a stamp is spoken."""
    return text.with_name(f"{text.stem}_desc_{language}.ogg")


def add(text: Path, folder: Path, out: Path) -> Row:
    """Writes the features of one description to `out`; returns its row."""
    name = text.relative_to(folder).with_suffix("")
    said = text.read_text("utf-8").splitlines()[0].strip()
    features = {"words": word_features(said)}
    for voice, language in VOICES.items():
        if recording(text, language).exists():
            samples, rate = soundfile.read(recording(text, language), always_2d=True)
            features[voice] = voice_features(samples.mean(axis=1), rate)
    row = dict.fromkeys(FIELDS, "") | {"group": said}
    for modality, values in features.items():
        path = out / modality / name.parent / f"{name.name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
        row[modality] = path.relative_to(out).as_posix()
    row["seconds"] = f"{soundfile.info(recording(text, TARGET)).duration:.3f}"
    return row


def build(packages: Path, out: Path, every: int = 1) -> list[Row]:
    """Writes the data set to `out`, of all descriptions or each `every`th; returns the rows."""
    folder = debian_package(PACKAGE, packages) / STAMPS
    found = sorted(
        (text for text in folder.rglob("*.txt") if recording(text, TARGET).exists()),
        key=lambda path: path.relative_to(folder).parts,
    )[::every]
    if not found:
        raise PackageError(f"{folder} holds no recordings; remove it and start again.")
    rows = [add(text, folder, out) for text in track(found, description="descriptions")]
    write_table(out, FIELDS, rows)
    return rows


def told(rows: Sequence[Row]) -> str:
    """How many there are, and how many lack what."""
    missing = {voice: sum(not row[voice] for row in rows) for voice in VOICES}
    from_each = " and ".join(f"{voice} from {count}" for voice, count in missing.items())
    return f"{len(rows)} descriptions; missing: {from_each}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return command("mosi_like", __doc__, "description", build, told, argv)


if __name__ == "__main__":
    raise SystemExit(main())
