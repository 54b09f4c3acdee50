"""Terminal, page and figures: everything measured is shown, and losses like wins."""

import base64
import io
import re

import pytest
from rich.console import Console

from mmfast.bench import html, terminal
from mmfast.bench.compare import compare
from mmfast.bench.plots import ratio_figure
from mmfast.bench.records import Result


@pytest.fixture
def mixed(a_run, measurement):
    won = measurement(
        {"copy": [0.5], "linear": [1.0], "mmfast": [1.0], "eager": [2.0], "compile": [1.5]},
        case="late <fusion>",
    )
    lost = measurement({"linear": [1.0], "mmfast": [4.0], "eager": [2.0]}, case="lost", mode="both")
    lost.peers["mmfast"] = Result([4.0], 2_000_000, 3000, 2500)
    series = [
        measurement(
            {"linear": [float(n)], "mmfast": [2.0 * n], "eager": [3.0 * n]},
            case=f"sweep {n}", group="sweep", series="a series", size=n, axis="batch",
        )
        for n in (1, 10, 100)
    ]  # fmt: skip
    broken = measurement({"linear": [1.0], "eager": [1.0]}, case="broken")
    broken.refused["mmfast"] = "PeerDisagreesError: mmfast: the result differs"
    return a_run(won, lost, *series, broken, skipped={"huge": "needs 99 GiB"}, load=3.0)


def printed(show, *arguments, width=120):
    text = io.StringIO()
    show(*arguments, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_wins_losses_and_refusals(mixed, width):
    text = printed(terminal.print_run, mixed, width=width)
    assert "2.00" in next(line for line in text.splitlines() if "late" in line)
    assert re.search(r"lost +f32 +both +4 s ±0% .* 0\.25 +0\.50", text)
    assert "refused: mmfast, broken, float32: PeerDisagreesError" in " ".join(text.split())
    assert "not measured: huge: needs 99 GiB" in text
    assert "load 3.0" in text
    assert "2.5 kB" in text


def test_the_terminal_says_whether_goals_are_met(mixed):
    text = printed(terminal.print_run, mixed, width=160)
    (line,) = [x for x in text.splitlines() if x.startswith("both / best peer, M >= 1k")]
    assert re.search(r"2 x +<= 1\.05 +no", line)


def test_the_comparison_names_what_became_slower(a_run, measurement):
    old = a_run(measurement({"mmfast": [1.0] * 3, "linear": [1.0] * 3}))
    new = a_run(measurement({"mmfast": [2.0] * 3, "linear": [1.0] * 3}))
    text = printed(terminal.print_comparison, compare(old, new))
    assert re.search(r"slower +pair, float32, forward .* 2\.00 x", text)
    assert "1 measurements in common: 1 slower, 0 faster" in text


def test_the_page_needs_nothing_beside_it(mixed):
    page = html.page(mixed)
    assert "<script" not in page
    assert "<link" not in page
    assert not re.search(r"https?://|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        assert "<svg" in svg
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_the_page_contains_every_case(mixed):
    page = html.page(mixed)
    for m in mixed.measurements:
        assert m.case.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "<fusion>" not in page
    assert "a series" in figure(page, "concat_linear, sweep: float32, forward")
    assert "linear alone" in figure(page, "concat_linear, sweep: float32, forward")
    assert "PeerDisagreesError" in page
    assert '<span class="bad">no</span>' in page


def figure(page, caption):
    found = re.search(rf'alt="{caption}" src="data:image/svg\+xml;base64,([^"]*)"', page)
    return base64.b64decode(found[1]).decode()


def test_an_empty_run_makes_a_page(a_run):
    assert html.page(a_run()).startswith("<!doctype html>")
    assert printed(terminal.print_run, a_run()) == ""


def test_bars_have_a_colour_for_every_peer(measurement):
    peers = ("linear", "mmfast", "eager", "split", "compile", "max-autotune", "tiled_matmul")
    svg = ratio_figure([measurement({peer: [1.0 + i] for i, peer in enumerate(peers)})])
    assert all(f"<!-- {peer} -->" in svg for peer in peers[2:])


def test_units():
    assert [terminal.duration(x) for x in (2.0, 0.0123, 4.56e-6)] == ["2 s", "12.3 ms", "4.56 us"]
    assert [terminal.size(x) for x in (12, 1500, 2.5e6, 3e9)] == [
        "12 B",
        "1.5 kB",
        "2.5 MB",
        "3 GB",
    ]
    assert terminal.size(None) == "-"
