"""The feature cache: same numbers, computed once, and never those of something else."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from data_files import Colour, Letters, png, write_csv
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from mmfast.data import (
    BatchSampler,
    CellError,
    ColumnSpec,
    MultimodalDataset,
    Table,
    cache_features,
    collate,
    detached_preprocess,
    read_table,
)
from mmfast.data.cached import join_parts, read_parts
from mmfast.plugins import Features

PHOTO, CAPTION = ColumnSpec("image", "image"), ColumnSpec("text", "text")
IDENTITY = {"name": "made_up", "options": {"width": 3}, "version": "1.0"}


@pytest.fixture
def table(tmp_path):
    """12 rows, the fifth without image, the last like the first; texts of 1 to 12 letters."""
    names = [f"{row}.png" for row in range(12)]
    for row, name in enumerate(names):
        (tmp_path / name).write_bytes(png((row % 11 * 20, 0, 0)))
    names[4] = ""
    rows = [[name, "y" * (row + 1)] for row, name in enumerate(names)]
    return read_table(write_csv(tmp_path / "rows.csv", ["image", "text"], rows))


@pytest.fixture
def cached(table, tmp_path):
    """Caches the photos of a table, by default with one encoder in one folder."""
    first = Colour()

    def fill(encoder=first, spec=PHOTO, rows=None, where=table, **options):
        rows = torch.arange(len(where)) if rows is None else torch.as_tensor(rows)
        arguments = {"identity": IDENTITY, "name": "photo", "batch_size": 4, **options}
        return cache_features(
            tmp_path / "cache", encoder, table=where, spec=spec, rows=rows, **arguments
        )

    fill.encoder = first
    return fill


def parts(tmp_path):
    return sorted((tmp_path / "cache").glob("*/part-*.safetensors"))


def computed(encoder, table, spec, rows):
    dataset = MultimodalDataset(
        table, {"x": spec}, torch.as_tensor(rows), {"x": detached_preprocess(encoder, False)}
    )
    batch = encoder.collate([dataset[place].inputs["x"] for place in range(len(rows))])
    encoder.eval()
    with torch.no_grad():
        return encoder(batch)


def test_pooled_features_are_those_of_the_encoder(table, cached):
    features = cached()
    rows = [3, 0, 4, 11, 7, 5, 1, 2]
    batch = features.batch(torch.tensor(rows))
    direct = computed(cached.encoder, table, PHOTO, rows)
    assert batch["mask"].tolist() == direct.mask.tolist()
    assert batch["mask"].tolist() == [True, True, False] + [True] * 5
    torch.testing.assert_close(batch["values"][direct.mask], direct.values[direct.mask])
    assert not batch["values"][2].any()
    assert features.sample(4) is None
    collated = features.collate([features.sample(row) for row in rows])
    assert all(collated[key].equal(batch[key]) for key in batch)


def test_the_numbers_are_the_bits_that_were_computed(table, cached):
    seen = []

    class Recorded(Colour):
        def forward(self, batch):
            seen.append(super().forward(batch))
            return seen[-1]

    features = cached(Recorded(), rows=[0, 1, 2, 3])
    again = pickle.loads(pickle.dumps(features)).batch(torch.arange(4))
    assert features.batch(torch.arange(4))["values"].equal(seen[0].values)
    assert again["values"].equal(seen[0].values)


def test_tokens(table, cached):
    encoder = Letters()
    features = cached(encoder, spec=CAPTION)
    for rows in ([2, 9, 0], [0]):
        direct = computed(encoder, table, CAPTION, rows)
        batch = features.batch(torch.tensor(rows))
        assert batch["mask"].equal(direct.mask)
        assert batch["values"].equal(direct.values)


def test_tokens_of_missing_rows(cached):
    table = Table({"text": ["abc", None, "d"]})
    features = cached(Letters(), spec=CAPTION, where=table)
    batch = features.batch(torch.tensor([1, 2, 0]))
    assert batch["mask"].sum(1).tolist() == [0, 1, 3]
    assert features.batch(torch.tensor([1]))["values"].shape == (1, 1, 4)


def test_holes_in_a_mask_stay(cached):
    class Holes(Letters):
        def forward(self, batch):
            values, mask = super().forward(batch)
            mask = mask.clone()
            mask[:, 1:2] = False
            return Features(values, mask)

    features = cached(Holes(), spec=CAPTION, where=Table({"text": ["abcd", "ab"]}))
    assert features.batch(torch.tensor([0, 1]))["mask"].tolist() == [
        [True, False, True, True],
        [True, False, False, False],
    ]


def test_computed_once(cached, tmp_path):
    cached()
    assert cached.encoder.calls == 10  # of 12 rows one is missing, and two are alike
    cached()
    assert cached.encoder.calls == 10
    assert len(parts(tmp_path)) == 1


def test_other_tables_share_it(table, cached, tmp_path):
    cached()
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "3.png", tmp_path / "moved" / "other_name.png")
    other = Table({"image": ["other_name.png"]}, base=tmp_path / "moved")
    features = cached(where=other)
    assert cached.encoder.calls == 10
    expected = cached().batch(torch.tensor([3]))["values"]
    assert features.batch(torch.tensor([0]))["values"].equal(expected)


def test_a_file_that_changes_is_computed_anew(cached, tmp_path):
    before = cached().batch(torch.tensor([2]))["values"]
    (tmp_path / "2.png").write_bytes(png((0, 99, 0)))
    after = cached().batch(torch.tensor([2]))["values"]
    assert cached.encoder.calls == 11
    assert not after.equal(before)


def test_further_rows_are_added(cached, tmp_path):
    some = cached(rows=[0, 1, 2])
    assert cached.encoder.calls == 3
    values = some.batch(torch.arange(3))["values"]
    more = cached(rows=[2, 3, 0, 5])
    assert cached.encoder.calls == 5
    assert more.batch(torch.tensor([0, 2]))["values"].equal(values[[0, 2]])
    assert len(parts(tmp_path)) == 1  # small files are joined


def test_rows_in_several_files(cached, monkeypatch, table, tmp_path):
    monkeypatch.setattr("mmfast.data.cached._JOIN_BYTES", 0)
    cached(rows=[0, 1, 2])
    cached(rows=[3, 4, 5])
    features = cached()
    assert len(parts(tmp_path)) == 3
    rows = [5, 4, 1, 9, 0, 3]
    direct = computed(cached.encoder, table, PHOTO, rows)
    batch = features.batch(torch.tensor(rows))
    assert batch["mask"].equal(direct.mask)
    torch.testing.assert_close(batch["values"][direct.mask], direct.values[direct.mask])


@pytest.mark.parametrize("change", ["weights", "options", "version"])
def test_another_encoder_is_another_cache(cached, change):
    cached()
    other = Colour()
    other.load_state_dict(cached.encoder.state_dict())
    cached(other)
    assert other.calls == 0
    identity = dict(IDENTITY)
    if change == "weights":
        with torch.no_grad():
            other.linear.bias[1] += 1e-6
    else:
        identity[change] = "other"
    cached(other, identity=identity)
    assert other.calls == 10


def test_unreadable_cells_that_count_as_missing(cached, tmp_path):
    (tmp_path / "1.png").write_bytes(b"damaged")
    with pytest.raises(CellError, match=r"rows\.csv:3, column 'image': 1\.png"):
        cached()
    features = cached(missing={(1, "photo"), (2, "caption")})
    assert features.sample(1) is None
    assert features.sample(2) is not None


def test_what_was_computed_before_an_error_is_kept(cached, tmp_path):
    (tmp_path / "9.png").write_bytes(b"damaged")
    with pytest.raises(CellError):
        cached()
    assert cached.encoder.calls == 8
    (tmp_path / "9.png").write_bytes(png((1, 2, 3)))
    cached()
    assert cached.encoder.calls == 10


def damage(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-10])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a flipped bit":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    else:
        save_file({"x": torch.ones(3)}, path)


@pytest.mark.parametrize("how", ["truncated", "empty", "a flipped bit", "another file"])
def test_a_damaged_file_is_told_and_computed_anew(cached, tmp_path, how):
    good = cached().batch(torch.arange(12))["values"]
    damage(*parts(tmp_path), how)
    with pytest.warns(UserWarning, match=r"part-.*\.safetensors are damaged \(.+\); they are comp"):
        again = cached()
    assert cached.encoder.calls == 20
    assert again.batch(torch.arange(12))["values"].equal(good)
    assert len(parts(tmp_path)) == 1


def test_a_changed_value_is_told_by_the_checksum(cached, tmp_path):
    cached()
    (path,) = parts(tmp_path)
    tensors = load_file(path)
    tensors["values"] += 1
    save_file(tensors, path)
    with pytest.warns(UserWarning, match="its checksum is wrong"):
        cached()


def test_a_file_that_another_run_joins_meanwhile(cached, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfast.data.cached._JOIN_BYTES", 0)
    cached(rows=[0, 1])
    cached(rows=[2, 3])
    folder = parts(tmp_path)[0].parent
    first = read_parts(folder)
    listed = sorted(folder.glob("part-*"))
    monkeypatch.setattr("mmfast.data.cached._JOIN_BYTES", 1 << 30)
    stale = iter([listed, None])

    real = type(folder).glob

    def glob(path, pattern):
        old = next(stale, None) if pattern == "part-*.safetensors" else None
        if old:
            join_parts(folder, first)
        return old or real(path, pattern)

    monkeypatch.setattr(type(folder), "glob", glob)
    (joined,) = read_parts(folder)
    assert len(joined.keys) == 4


def test_what_killed_runs_left_is_removed(cached, tmp_path):
    cached()
    folder = parts(tmp_path)[0].parent
    for name, age in [(".part-old", 7200), (".part-new", 0)]:
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    cached()
    assert [path.name for path in folder.glob(".part-*")] == [".part-new"]


def test_a_full_disk(cached, tmp_path, monkeypatch):
    cached(rows=[0, 1])

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(
            OSError, match=r"the feature cache .* cannot be written: .*No space left"
        ):
            cached()
    assert not list((tmp_path / "cache").glob("*/.part*"))
    calls = cached.encoder.calls
    cached(rows=[0, 1])
    assert cached.encoder.calls == calls


def test_a_folder_that_cannot_be_made(cached, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"the feature cache .* cannot be written: "):
        cached()


KILLED = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from data_files import Colour
from mmfast.data import ColumnSpec, cache_features, read_table
from mmfast.data import cache
cache._FLUSH_BYTES = 1
class Dying(Colour):
    def forward(self, batch):
        if self.calls == 8:
            os.kill(os.getpid(), 9)
        return super().forward(batch)
encoder = Dying()
encoder.load_state_dict(torch.load({weights!r}))
cache_features({folder!r}, encoder, identity={identity!r}, table=read_table({table!r}),
    spec=ColumnSpec("image", "image"), rows=torch.arange(12), name="photo", batch_size=4)
"""


def test_what_was_computed_before_a_kill_is_kept(cached, tmp_path):
    torch.save(cached.encoder.state_dict(), tmp_path / "weights.pt")
    code = KILLED.format(
        tests=os.path.dirname(os.path.dirname(__file__)),
        weights=str(tmp_path / "weights.pt"),
        folder=str(tmp_path / "cache"),
        identity=IDENTITY,
        table=str(tmp_path / "rows.csv"),
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert len(parts(tmp_path)) == 8
    cached()
    assert cached.encoder.calls == 2


def test_dropout_is_off_while_it_computes(table, cached):
    class Dropping(Colour):
        def forward(self, batch):
            values, mask = super().forward(batch)
            return Features(torch.dropout(values, 0.5, self.training), mask)

    encoder = Dropping().train()
    values = cached(encoder, rows=[1, 2, 3, 5]).batch(torch.tensor([1, 2, 3, 5]))["values"]
    assert (values != 0).all()
    assert encoder.training


@pytest.mark.parametrize("workers", [0, 2])
def test_the_encoder_and_the_generator_are_as_before(cached, workers):
    before = torch.get_rng_state()
    cached.encoder.train()
    cached(workers=workers)
    assert cached.encoder.training
    assert torch.get_rng_state().equal(before)


def test_progress(cached):
    calls = []
    cached(progress=lambda *call: calls.append(call))
    assert calls[0] == (12, 24)
    assert calls[-1] == (24, 24)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    cached(progress=lambda *call: calls.append(call))
    assert calls[-1] == (24, 24)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_the_cache(table, cached, workers):
    """A loader whose batches come from the cache, wholly and in part."""
    features = cached()
    letters = Letters()
    preprocess = {
        "photo": detached_preprocess(cached.encoder, True),
        "caption": detached_preprocess(letters, True),
    }
    specs = {"photo": PHOTO, "caption": CAPTION}
    collates = {"photo": features.collate, "caption": letters.collate}
    labels = torch.arange(12) * 10
    expected = features.batch(torch.arange(12))

    def epoch(names):
        dataset = MultimodalDataset(
            table,
            specs,
            torch.arange(12),
            {name: preprocess[name] for name in names},
            labels=labels,
            features={"photo": features},
        )
        sampler = BatchSampler(12, 5, seed=3)
        joined = partial(collate, collates=collates)
        return list(
            DataLoader(dataset, batch_sampler=sampler, collate_fn=joined, num_workers=workers)
        )

    for whole, part in zip(epoch(["photo"]), epoch(["photo", "caption"]), strict=True):
        assert list(whole.inputs) == ["photo"]
        assert set(part.inputs) == {"photo", "caption"}
        for batch in (whole, part):
            assert batch.labels.equal(batch.rows * 10)
            for key in expected:
                assert batch.inputs["photo"][key].equal(expected[key][batch.rows])
