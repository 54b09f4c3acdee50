"""Two processes train as one does."""

import json

import pytest
import torch
from pipeline import write_config
from ranks import history, last

from mmfast.train import ConfigError, load_config

STAGES = "train.stages=[{name: align, objective: contrastive}, {name: fine, epochs: 2}]"
SGD = ("train.optimizer=sgd", "train.lr=0.1")  # Adam would hide gradients of another scale
SETTINGS = {
    "plain": ("train.epochs=3", *SGD),
    "everything": (
        "train.epochs=2",
        "train.ema=0.8",
        "train.clip_norm=0.5",
        "train.accumulate=2",
        "task.balance=weights",
        "data.split.fractions=[0.55, 0.25, 0.2]",
    ),
    "stages": ("train.epochs=1", STAGES, *SGD, "train.clip_norm=0.05"),
    "retrieval": ("train.epochs=2", "task.type=retrieval"),
}


def train(ranks, folder, name, count, *overrides, size=8):
    """A run on so many ranks, whose batches together are of one size."""
    settings = ("model.dropout=0", f"run.dir={folder / name}", f"train.batch_size={size // count}")
    arguments = ("train", folder / "config.yaml", "--no-report", *settings, *overrides)
    return ranks.run(count, folder, *arguments)


def numbers(record):
    """Losses, metrics, rates."""
    return {k: v for k, v in record.items() if isinstance(v, float) and k != "seconds"}


@pytest.mark.parametrize(
    ("setting", "strategies"),
    [
        ("plain", ("ddp",)),
        ("everything", ("ddp", "fsdp2")),
        ("stages", ("fsdp2",)),
        ("retrieval", ("ddp",)),
    ],
)
def test_two_ranks_with_half_the_batch_are_one(ranks, tmp_path, setting, strategies):
    """Batches that do not divide evenly among them, or leave one without a row, included."""
    write_config(tmp_path, rows=59)
    one = train(ranks, tmp_path, "one", 1, *SETTINGS[setting])
    assert one.out[0].count("epoch 1") > 0
    expected = last(tmp_path / "one").tensors
    for strategy in strategies:
        chosen = (*SETTINGS[setting], f"train.strategy={strategy}")
        two = train(ranks, tmp_path, strategy, 2, *chosen)
        assert two.out[0].count("epoch 1") == one.out[0].count("epoch 1")
        assert two.out[1] == ""  # one rank speaks
        for a, b in zip(history(tmp_path / "one"), history(tmp_path / strategy), strict=True):
            assert numbers(b) == pytest.approx(numbers(a), rel=2e-5, abs=1e-6, nan_ok=True)
        found = last(tmp_path / strategy).tensors
        assert expected.keys() == found.keys()
        for file, tensors in expected.items():
            assert tensors.keys() == found[file].keys()
            for name, value in tensors.items():
                torch.testing.assert_close(found[file][name], value, rtol=1e-3, atol=2e-5)


BATCH_NORM = """
import torch, mmfast.encoders.features as features
encoder = features.FeatureVector
init, forward = encoder.__init__, encoder.forward
def __init__(self, *arguments, **named):
    init(self, *arguments, **named)
    self.norm = torch.nn.BatchNorm1d(self.spec.out_dim, affine=False)
def normed(self, batch):
    found = forward(self, batch)
    return found._replace(values=self.norm(found.values))
encoder.__init__, encoder.forward = __init__, normed
"""


def test_what_is_measured_is_what_is_saved(ranks, tmp_path):
    """Each rank's batch norms see other rows; they are measured with those that are kept."""
    config = write_config(tmp_path)
    settings = ("train.epochs=1", "data.split.fractions=[0.5, 0.3, 0.2]")
    ranks.run(2, tmp_path, "train", config, "--no-report", *settings, code=BATCH_NORM)
    file = tmp_path / "metrics.json"
    arguments = ("evaluate", tmp_path / "run", "--split", "val", "--checkpoint", "last")
    ranks.run(1, tmp_path, *arguments, "--json", file, code=BATCH_NORM)
    (record,) = history(tmp_path / "run")
    for name, value in json.loads(file.read_text()).items():
        assert record[f"val_{name}"] == pytest.approx(value, rel=1e-5), name


def test_more_ranks_than_rows(ranks, tmp_path):
    """Three ranks; two rows to learn from, one to measure on: the others only keep in step."""
    write_config(tmp_path, rows=4, missing=False)
    few = ("data.split.method=random", "data.split.fractions=[0.5, 0.25, 0.25]")
    overrides = ("train.epochs=2", "task.type=regression", "data.label=value", *few)
    for count in (1, 3):
        train(ranks, tmp_path, str(count), count, *overrides, size=6)
    for a, b in zip(history(tmp_path / "1"), history(tmp_path / "3"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-5)


@pytest.mark.parametrize("setting", ["precision=fp16", "compile=true"])
def test_what_fsdp2_does_not_go_with(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"fsdp2 does not go with {setting.split('=')[0]}"):
        load_config(write_config(tmp_path), ["train.strategy=fsdp2", f"train.{setting}"])


def test_crossval_on_two_ranks(ranks, tmp_path):
    """One process after another trains a fold in the same processes; one of them reports."""
    config = write_config(tmp_path)
    settings = ("train.epochs=1", "data.split.folds=2", f"run.dir={tmp_path / 'folds'}")
    ended = ranks.run(2, tmp_path, "crossval", config, *settings)
    assert ended.out[0].count("crossval.json") == 1
    assert ended.out[1] == ""
    assert (tmp_path / "folds" / "crossval.json").is_file()


def test_the_cache_is_filled_by_all_ranks(ranks, tmp_path):
    """Each encodes its own part of the rows, and no row is stored twice."""
    config = write_config(tmp_path)
    cache = tmp_path / "cache"
    code = (
        "import mmfast.encoders.features as f, pathlib\n"
        "forward = f.FeatureVector.forward\n"
        "def counted(self, batch):\n"
        f"    with open({str(tmp_path)!r} + f'/encoded-{{rank}}', 'a') as file:\n"
        "        file.write(str(len(batch['values'])) + '\\n')\n"
        "    return forward(self, batch)\n"
        "f.FeatureVector.forward = counted\n"
    )
    frozen = ("model.encoders.vector.freeze=all", f"data.cache={cache}", "train.epochs=1")
    ranks.run(2, tmp_path, "train", config, "--no-report", *frozen, code=code)
    encoded = [
        sum(map(int, (tmp_path / f"encoded-{rank}").read_text().split())) for rank in range(2)
    ]
    from safetensors.torch import load_file

    keys = [
        bytes(key.tolist())
        for path in cache.glob("vector-*/part-*.safetensors")
        for key in load_file(path)["keys"]
    ]
    assert len(keys) == len(set(keys)) == sum(encoded)
    assert abs(encoded[0] - encoded[1]) <= 3
