"""The files of the demo: a picture that is one, and a table that says what was measured."""

import pytest
from PIL import Image
from rich.console import Console

from mmfast.train.report.demo import mean_and_deviation, results_table, save_learning_curves
from mmfast.train.timing import Timing


def history(level):
    names = ("train_loss", "val_loss", "val_accuracy")
    epochs = [(2.0, 2.1, 0.2), (1.5, 1.8, 0.4), (1.2, 1.7, level)]
    return [dict(zip(names, values, strict=True)) for values in epochs]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_picture_is_a_picture(tmp_path, seeds):
    path = tmp_path / "new" / "curves.png"
    save_learning_curves({name: [history(0.5)] * seeds for name in ("a", "b", "c")}, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 800
        colours = image.convert("RGB").resize((300, 120)).getcolors(maxcolors=100_000)
    assert len(colours) > 50, "nothing but paper"


def test_other_numbers_give_another_picture(tmp_path):
    for name, level in (("one", 0.5), ("other", 0.9)):
        save_learning_curves({"a": [history(level)]}, tmp_path / name)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


def test_the_table_states_accuracy_gain_and_time():
    accuracies = {"image only": [0.6, 0.7], "text only": [0.7, 0.72], "fused": [0.79, 0.79]}
    timings = [
        Timing(64, (64, 128), 128, "float32", 1, False, 2e-5, 5e-5),
        Timing(8192, (2048, 768), 512, "float32", 16, True, 0.1, 0.09),
    ]
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(results_table(accuracies, timings))
    text = captured.get()
    for part in ("65.0 ± 7.1 %", "71.0 ± 1.4 %", "79.0 ± 0.0 %", "+8.0 points", "text only 71.0 %"):
        assert part in text, part
    for part in (
        "64x(64+128)>128 1T",
        "512 16T",
        "20.0 us",
        "50.0 us",
        "2.50 x",
        "100.0 ms",
        "0.90 x",
    ):
        assert part in text, part
    assert "…" not in text, "80 columns must do"


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_deviation([4.0]) == (4.0, 0.0)
