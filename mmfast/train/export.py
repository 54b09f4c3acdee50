"""A trained model as a ``torch.export`` program."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from mmfast.data import Checked, ColumnSpec, Table
from mmfast.data.read import is_missing


def export_model(model: nn.Module, inputs: Mapping[str, Any]) -> ExportedProgram:
    """The program of a model in evaluation mode.

    Args:
        model: from inputs by modality to outputs.
        inputs: an example. Sizes other than 1 may differ in use, so far as the model allows it.
    """
    dynamic = tree_map_only(Tensor, _any_sizes, inputs)
    return torch.export.export(model, (inputs,), dynamic_shapes=(dynamic,))


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    # In memory first: where torch meets a full disk, it ends the process.
    data = io.BytesIO()
    torch.export.save(program, data)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data.getbuffer())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def example_rows(table: Table, specs: Mapping[str, ColumnSpec], checked: Checked) -> Tensor:
    """Rows for an example: two to eight, of those that lack fewest modalities.

    A missing text is one token long; an example of such alone would fix that length.
    """
    lacking = [
        sum((row, name) in checked.missing or is_missing(table, row, specs[name]) for name in specs)
        for row in checked.rows.tolist()
    ]
    rows = checked.rows[torch.tensor(lacking).argsort(stable=True)[:8]]
    return rows if len(rows) > 1 else rows.repeat(2)


def _any_sizes(x: Tensor) -> dict[int, Any]:
    return {dim: torch.export.Dim.AUTO for dim, size in enumerate(x.shape) if size != 1}
