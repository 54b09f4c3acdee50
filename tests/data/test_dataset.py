"""Samples and batches: the same whoever reads them, whenever, and in whatever order."""

from functools import partial

import pytest
import torch
from data_files import Colour, Letters, png, write_csv
from torch import nn
from torch.utils.data import DataLoader

from mmfast.data import (
    BatchSampler,
    CellError,
    ColumnSpec,
    Draw,
    MultimodalBatch,
    MultimodalDataset,
    Table,
    TableError,
    collate,
    detached_preprocess,
    read_table,
)

SPECS = {"photo": ColumnSpec("image", "image"), "caption": ColumnSpec("text", "text")}


@pytest.fixture
def table(tmp_path):
    """23 rows; every fifth has no image, every seventh no text."""
    rows = []
    for row in range(23):
        (tmp_path / f"{row}.png").write_bytes(png((row * 10, 0, 0)))
        rows.append(["" if row % 5 == 4 else f"{row}.png", "" if row % 7 == 6 else "x" * (row + 1)])
    return read_table(write_csv(tmp_path / "rows.csv", ["image", "text"], rows))


@pytest.fixture
def encoders():
    return {"photo": Colour(), "caption": Letters()}


def made(table, encoders, rows=None, training=True, **options):
    rows = torch.arange(len(table)) if rows is None else torch.as_tensor(rows)
    preprocess = {name: detached_preprocess(e, training) for name, e in encoders.items()}
    return MultimodalDataset(table, SPECS, rows, preprocess, **options)


def batches(dataset, encoders, epoch=1, start=0, **options):
    sampler = BatchSampler(len(dataset), 4, seed=9)
    sampler.set_epoch(epoch, start)
    collates = {name: encoder.collate for name, encoder in encoders.items()}
    return list(
        DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=partial(collate, collates=collates),
            **options,
        )
    )


def equal(one, other):
    return (
        one.rows.equal(other.rows)
        and (one.labels is None or one.labels.equal(other.labels))
        and all(
            tensor.equal(other.inputs[name][key])
            for name, batch in one.inputs.items()
            for key, tensor in batch.items()
        )
    )


def test_a_batch(table, encoders):
    labels = torch.arange(100, 123)
    (batch,) = DataLoader(
        made(table, encoders, [0, 4, 6, 2], training=False, labels=labels[[0, 4, 6, 2]]),
        batch_size=4,
        collate_fn=partial(collate, collates={n: e.collate for n, e in encoders.items()}),
    )
    assert batch.rows.tolist() == [0, 4, 6, 2]
    assert batch.labels.tolist() == [100, 104, 106, 102]
    assert batch.inputs["photo"]["present"].tolist() == [True, False, True, True]
    red = batch.inputs["photo"]["image"][:, 0] * 255
    torch.testing.assert_close(red, torch.tensor([0.0, 0, 60, 20]))
    assert batch.inputs["caption"]["mask"].sum(1).tolist() == [1, 5, 0, 3]
    assert len(batch) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 1},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 2, "multiprocessing_context": "spawn"},
    ],
    ids=["one", "two", "spawned"],
)
def test_workers_change_nothing(table, encoders, options):
    dataset = made(table, encoders, labels=torch.rand(23))
    alone = batches(dataset, encoders)
    shared = batches(dataset, encoders, **options)
    assert len(alone) == len(shared) == 6
    assert all(map(equal, alone, shared))


def test_resuming_changes_nothing(table, encoders):
    dataset = made(table, encoders)
    whole = batches(dataset, encoders)
    rest = batches(dataset, encoders, start=4)
    assert len(rest) == 2
    assert all(map(equal, whole[4:], rest))


def test_what_is_left_unread_is_not_read(table, encoders):
    dataset = made(table, encoders)
    order = [batch.rows.tolist() for batch in batches(dataset, encoders)]
    for row in order[0]:
        (table.base / f"{row}.png").unlink()
    assert len(batches(dataset, encoders, start=1)) == 5


def test_randomness_differs_by_seed_epoch_row_and_copy(table, encoders):
    def drawn(draw, seed=0):
        dataset = made(table, encoders, [0, 0, 1], seed=seed)
        return float(dataset[draw].inputs["photo"][1])

    values = [
        drawn(Draw(0)),
        drawn(Draw(0), seed=1),
        drawn(Draw(0, epoch=1)),
        drawn(Draw(2)),
        drawn(Draw(0, copy=1)),
    ]
    assert len(set(values)) == 5
    assert drawn(0) == drawn(Draw(1)) == values[0]


def test_one_modality_does_not_disturb_the_other(table, encoders):
    class Noise(Letters):
        def preprocess(self, raw):
            return torch.rand(len(raw))

    both = made(table, {"caption": Noise(), "photo": encoders["photo"]})
    alone = made(table, {"photo": encoders["photo"]})
    assert both[3].inputs["photo"].equal(alone[3].inputs["photo"])


def test_the_global_generator_is_left_alone(table, encoders):
    dataset = made(table, encoders)
    before = torch.get_rng_state()
    dataset[0]
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    assert dataset[0].inputs["photo"].equal(made(table, encoders)[0].inputs["photo"])


def test_preprocess_keeps_its_mode(table, encoders):
    encoder = encoders["photo"]
    training, evaluating = (detached_preprocess(encoder, mode) for mode in (True, False))
    encoder.train()
    raw = torch.zeros(3, 2, 2, dtype=torch.uint8)
    assert float(evaluating(raw).sum()) == 0
    encoder.eval()
    assert float(training(raw).sum()) > 0
    assert not encoder.training


def test_the_mode_of_parts_is_kept_too():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Colour()

        def preprocess(self, raw):
            return self.inner.preprocess(raw)

    encoder = Outer()
    evaluating = detached_preprocess(encoder, False)
    assert float(evaluating(torch.zeros(3, 2, 2, dtype=torch.uint8)).sum()) == 0
    assert encoder.inner.training
    assert evaluating.__self__.inner.linear.weight is encoder.inner.linear.weight


def test_a_cell_that_is_to_be_missing(table, encoders):
    (table.base / "0.png").write_bytes(b"damaged")
    dataset = made(table, encoders, missing={(0, "photo")})
    assert dataset[0].inputs["photo"] is None
    assert dataset[0].inputs["caption"] is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_told(table, encoders, workers):
    (table.base / "3.png").write_bytes(b"damaged")
    with pytest.raises(CellError, match=r"rows\.csv:5, column 'image': 3\.png: is no readable"):
        batches(made(table, encoders), encoders, num_workers=workers)


def test_what_preprocess_refuses_is_told_with_its_row(encoders):
    table = Table({"image": [None], "text": ["x" * 100]})
    with pytest.raises(CellError, match="table, row 0, column 'text': the text has more than 99"):
        made(table, encoders)[0]


def test_modalities_without_an_encoder_are_left_out(table, encoders):
    table = Table({"text": table.columns["text"]})
    assert list(made(table, {"caption": encoders["caption"]})[0].inputs) == ["caption"]


def test_a_batch_moves():
    batch = MultimodalBatch({"a": {"x": torch.ones(2)}}, torch.ones(2), torch.arange(2))
    moved = batch.to("meta")
    assert moved.inputs["a"]["x"].is_meta
    assert moved.labels.is_meta
    assert not moved.rows.is_meta


def test_bad_arguments(table, encoders):
    with pytest.raises(ValueError, match="labels must be as many as rows, got 2 and 23"):
        made(table, encoders, labels=torch.ones(2))
    with pytest.raises(ValueError, match="specs has no 'sound'; it has 'photo', 'caption'"):
        made(table, {"sound": encoders["photo"]})
    with pytest.raises(TableError, match="no column 'text'"):
        made(Table({"image": ["a"]}), encoders)
