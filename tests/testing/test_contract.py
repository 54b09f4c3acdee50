"""mmfast.testing: honest encoders pass, and the kit names the promise that each liar breaks."""

import dataclasses
import subprocess
import sys
from unittest import SkipTest

import liars
import pytest
import torch

from mmfast.plugins import EncoderSpec, register_encoder
from mmfast.plugins.encoders import ENCODERS
from mmfast.testing import (
    ContractError,
    EncoderContract,
    check_encoder,
    default_samples,
    run_checks,
)


def kit_of(encoder):
    kit = EncoderContract()
    kit.make_encoder = encoder
    return kit


def failures(encoder):
    return {c.name: c.message for c in run_checks(kit_of(encoder)) if c.outcome == "failed"}


@pytest.mark.parametrize("encoder", liars.HONEST)
def test_honest(encoder):
    assert failures(encoder) == {}


def test_checks_that_mean_nothing_are_skipped_with_a_reason():
    skipped = {c.name: c.message for c in run_checks(kit_of(liars.NoParameters)) if c.message}
    assert set(skipped) >= {"backward", "ddp", "frozen", "missing", "sample_rate", "empty_text"}
    assert skipped["sample_rate"] == "only for audio"
    assert skipped["backward"] == "it has no trainable parameters"


# Every check that fails, and what the first of them says.
LIES = {
    liars.OtherVersion: ("spec", "api_version is 2"),
    liars.NoRate: ("spec sample_rate", "its spec states no sample_rate"),
    liars.WrongDim: ("output", r"values are \(3, 12\); the spec says out_dim 6"),
    liars.TokensForPooled: ("output", r"values are \(3, 41, 6\); the spec says pooled"),
    liars.FloatMask: ("output all", r"mask is torch\.float32"),
    liars.PlainTuple: ("output all", "forward returns a tuple"),
    liars.TimeFirst: (
        "output",
        "collate's 'ids' is no tensor whose first dimension is the batch's",
    ),
    liars.LeaksPadding: (
        "padding",
        "batched with samples of other lengths, the",
    ),
    liars.LeaksPaddingIntoTokens: ("padding", "the features of a sample differ"),
    liars.CentresBatch: (
        "batch_of_one padding empty_text missing",
        "batched with another of its length, the features",
    ),
    liars.AlwaysDrops: ("batch_of_one all", "the second of two calls gives other features"),
    liars.NanForEmpty: (
        "missing all_missing backward empty_text autocast",
        "the gradient of norm.weight with a missing sample: 8 of 8 numbers",
    ),
    liars.NanGradient: (
        "missing all_missing backward autocast",
        "gradient of .* with a missing sample",
    ),
    liars.LearnsFromMissing: (
        "missing all_missing",
        "a missing sample changes the gradient of last",
    ),
    liars.MissingIsValid: ("missing all_missing", r"the mask says \[True, True, True\]"),
    liars.StopsWhenAllMissing: ("all_missing ddp", "every sample is missing have no graph"),
    liars.Unused: ("backward all_missing ddp partly_frozen", "forgotten.weight is not used"),
    liars.GroupLeftOut: ("layer_groups frozen partly_frozen", "leaves out table.weight"),
    liars.GroupTwice: ("layer_groups frozen partly_frozen", "holds table.weight twice"),
    liars.WakesUp: ("frozen", "last.weight trains although it is frozen"),
    liars.MovingStatistics: ("frozen", "forward in training mode changes average"),
    liars.AllOrNothing: ("partly_frozen", "does not require grad"),
    liars.NoAutocast: ("autocast", "RuntimeError: Index put requires"),
    liars.OtherWhenCompiled: ("compile", "under torch.compile, the features of a sample differ"),
    liars.PlainTensor: ("state_dict", "a restored encoder gives other features"),
    liars.GrowingVocabulary: ("state_dict", "a restored encoder preprocesses otherwise"),
    liars.Unpicklable: ("spawn_worker", "lambda"),
    liars.DependsOnProcess: ("fork_worker spawn_worker", "a forked worker makes another batch"),
    liars.DiesInWorkers: ("spawn_worker fork_worker", "the spawned worker died or hangs: "),
    liars.OtherRandom: ("preprocess_seed", "two calls after one torch seed differ"),
    liars.RandomInEvaluation: ("preprocess_seed all", "two calls in evaluation mode differ"),
    liars.ChangesInput: ("preprocess_input all", "preprocess changes the raw sample"),
    liars.SwapsColours: ("pil_and_tensor", "the PIL image and the tensor of one picture"),
    liars.AnyRate: ("sample_rate", "a recording at 16000 Hz is"),
}


@pytest.mark.parametrize("liar", LIES)
def test_liar(liar):
    checks, message = LIES[liar]
    first, *others = checks.split()
    found = failures(liar)
    assert first in found
    with pytest.raises(ContractError, match=message):
        raise ContractError(found[first])
    assert "\n  The contract: " in found[first]
    if others != ["all"]:  # else it breaks more than is worth listing
        assert set(found) == {first, *others}, found


def test_every_check_has_a_liar():
    named = {check for checks, _ in LIES.values() for check in checks.split()}
    checks = {name.removeprefix("test_") for name in dir(EncoderContract) if name[:5] == "test_"}
    # options has tests of its own below; cuda needs a device.
    assert checks - named == {"options", "cuda"}


def test_lies_are_from_the_right_file():
    found = {x for x in vars(liars).values() if isinstance(x, type) and x.__module__ == "liars"}
    assert found == {*LIES, *liars.HONEST}


# --------------------------------------------------------------------------- options, samples


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setattr(ENCODERS, "registered", {})


class Fitted(liars.Vector):
    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    @classmethod
    def fit_options(cls, samples, **options):
        if samples[0].dim() != 1:
            raise ValueError("only vectors")
        return {"mean": float(torch.stack(samples).mean()), **options}


@pytest.mark.usefixtures("_registered")
def test_options_are_completed_from_samples():
    register_encoder("fitted", modality="features")(Fitted)
    kit = EncoderContract()
    kit.name = "fitted"
    mean = kit.complete_options()["mean"]
    assert mean == pytest.approx(float(torch.stack(default_samples("features")[0]).mean()))
    kit.options = {"mean": 3.0}
    assert kit.make_encoder().mean == 3.0
    assert [c for c in check_encoder("fitted") if c.outcome == "failed"] == []


@pytest.mark.usefixtures("_registered")
def test_options_that_are_not_json():
    class Set(Fitted):
        @classmethod
        def fit_options(cls, samples, **options):
            return {"mean": {1, 2}}

    register_encoder("set", modality="features")(Set)
    failed = {c.name: c.message for c in check_encoder("set") if c.outcome == "failed"}
    assert "Object of type set is not JSON serializable" in failed["options"]
    assert "A config file and a checkpoint hold them" in failed["options"]


def test_samples_that_do_not_suit():
    class Wide(liars.Vector):
        def preprocess(self, raw):
            raise ValueError("a vector must have 35 features")

    found = failures(Wide)
    assert "preprocess refuses the made-up samples" in found["output"]
    assert "override samples()" in found["output"]
    kit = kit_of(Wide)
    kit.samples = lambda encoder: [torch.ones(35)] * 2
    messages = [c.message for c in run_checks(kit) if c.name == "output"]
    assert "samples() gives 2; it must give three or more" in messages[0]


def test_a_kit_without_an_encoder_says_so():
    checks = list(run_checks(EncoderContract()))
    assert all("give the test class a name" in c.message for c in checks if c.outcome == "failed")
    assert any(c.outcome == "failed" for c in checks)


def test_default_samples():
    for modality in ("text", "tabular", "audio", "image", "video", "features"):
        for raws in default_samples(modality):
            assert len(raws) >= 3
    assert len({len(wave.samples) for wave in default_samples("audio")[0]}) == 3
    spec = EncoderSpec(api_version=1, modality="audio", out_dim=1, sample_rate=8000)
    assert {wave.sample_rate for wave in default_samples("audio", spec)[0]} == {8000}
    spec = dataclasses.replace(spec, modality="image", image_size=(8, 8))
    assert len({image.shape for image in default_samples("image", spec)[0]}) == 3
    with pytest.raises(ValueError, match="modality 'smell'"):
        default_samples("smell")


# ------------------------------------------------------------------------------- under pytest

FILE = """
import liars
from mmfast.testing import EncoderContract

class TestHonest(EncoderContract):
    def make_encoder(self):
        return liars.Vector()

class TestLiar(EncoderContract):
    def make_encoder(self):
        return liars.ChangesInput()
"""


def test_under_pytest(tmp_path):
    (tmp_path / "test_them.py").write_text(FILE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "input or output",
            "test_them.py",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(next(p for p in liars.__spec__.origin.split("/liars") if p))},
        capture_output=True,
        text=True,
    )
    assert "TestHonest" not in done.stdout, done.stdout
    assert "FAILED test_them.py::TestLiar::test_preprocess_input" in done.stdout
    assert "preprocess changes the raw sample" in done.stdout
    assert "Data sets keep samples in memory" in done.stdout


def test_skips_are_skips():
    with pytest.raises(SkipTest, match="only for audio"):
        kit_of(liars.Text).test_sample_rate()
