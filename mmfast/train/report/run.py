"""The report of one run, from its folder to the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmfast import doctor
from mmfast.data import read_table
from mmfast.train.predictions import Predictions, predictions_of
from mmfast.train.prepare import Notify, column_spec
from mmfast.train.report import modalities, tasks, training
from mmfast.train.report.examples import most_wrong
from mmfast.train.report.page import facts, page, section, tag, text, write_page
from mmfast.train.report.record import Record, read_record
from mmfast.train.scores import Scores
from mmfast.train.statistics import Interval, Resampling, intervals
from mmfast.train.tasks import DEFAULT_METRIC

EXAMPLES = 12


def write_report(
    path: str | Path,
    output: str | Path | None = None,
    *,
    examples: int = EXAMPLES,
    fresh: bool = False,
    notify: Notify | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        path: the folder of the run.
        output: the file; by default ``report.html`` in that folder.
        examples: how many of the most wrong rows to show.
        fresh: compute the predictions even where those stored are up to date.
        notify: is told how far it is.

    Returns:
        The file written.

    Raises:
        CheckpointError: the folder holds no run.
        OSError: the file cannot be written.
        TableError, DataError, CellError: the table cannot be read any more.
    """
    folder = Path(path)
    output = folder / "report.html" if output is None else Path(output)
    record = read_record(folder)
    split = record.config.data.split
    if split.method != "column" and not split.fractions[2]:
        found = None  # there are no test rows, by intention
    else:
        found = predictions_of(folder, fresh=fresh, notify=notify)
    write_page(_page(record, found, examples, notify or (lambda what, done, total: None)), output)
    return output


def _page(record: Record, found: Predictions | None, examples: int, notify: Notify) -> str:
    title = f"{record.path.resolve().name}: {record.config.task.type}"
    steps = 4
    notify("writing the report", 0, steps)
    if found is None:
        intro = tag("p", "The configuration keeps no test rows, so nothing is measured here.")
        metric = record.config.task.metric or DEFAULT_METRIC[record.config.task.type]
        curves = training.learning_curves(record, metric)
        return page(title, intro, [section("Learning", curves), *_appendix(record)])
    scores = Scores.of(found)
    metric = found.about.metric
    if metric not in scores.measures:  # such as the loss
        metric = DEFAULT_METRIC[found.about.kind]
    groups = None if found.groups is None else found.groups.numpy()
    resampling = Resampling.of(scores, groups)
    measured = intervals(scores, resampling)
    notify("writing the report", 1, steps)
    sections = [
        section(
            "Test metrics",
            tasks.metrics_table(measured, metric),
            tasks.honest_n(resampling, measured),
        ),
        section("Learning", training.learning_curves(record, metric)),
        section("On the test rows", tasks.task_figures(scores)),
    ]
    notify("writing the report", 2, steps)
    sections += [
        section(
            "Modalities",
            modalities.ablation(found, metric, resampling),
            tag("div", modalities.robustness(found, metric), class_="grid"),
        ),
        section("Fusion weights", modalities.fusion_weights(found, scores)),
    ]
    notify("writing the report", 3, steps)
    config = record.config
    table = read_table(config.data.source, config.data.options)
    specs = {name: column_spec(config, name) for name in config.model.encoders}
    sections += [
        section(
            "Most wrong", most_wrong(found, scores, table, specs, examples) if examples else ""
        ),
        *_appendix(record),
    ]
    notify("writing the report", 4, steps)
    return page(title, _intro(record, found, measured, metric), sections)


def _intro(
    record: Record, found: Predictions, measured: Mapping[str, Interval], metric: str
) -> str:
    model = record.config.model
    told = (
        f"{', '.join(model.encoders)} joined by {model.fusion.name}, trained on "
        f"{record.config.data.source}, measured on {len(found)} test rows with the weights of the "
        f"best of {len(record.progress.history)} epochs."
    )
    names = [metric, *(n for n in measured if n != metric and "_to_" not in n)][:4]
    tiles = [
        tag(
            "div",
            tag("span", text(name)),
            tag("b", tasks.number(measured[name].value)),
            tag("span", text(f"95 %: {tasks.between(measured[name])}")),
            class_="tile",
        )
        for name in names
    ]
    return tag("p", text(told)) + tag("div", *tiles, class_="tiles")


def _appendix(record: Record) -> list[tuple[str, str]]:
    """What holds for every run: time, environment, configuration."""
    machine = doctor.examine()
    told = [(name, value) for part in machine.values() for name, value in part.items()]
    manifest = {
        k: v for k, v in record.manifest.items() if k not in ("files", "format", "encoders")
    }
    plugins = record.manifest.get("encoders", {})
    trained = [*manifest.items(), *((f"encoder {n}", source) for n, source in plugins.items())]
    return [
        section("Time", training.time_by_part(record)),
        section(
            "Environment",
            tag("h3", "That trained it"),
            facts([("folder", record.path.resolve()), *trained]),
            tag(
                "details",
                tag("summary", "The machine that wrote this page (mmfast doctor)"),
                facts(told),
            ),
        ),
        section(
            "Configuration",
            tag(
                "details",
                tag("summary", "Every key, defaults written out"),
                tag("pre", text(record.yaml, 100_000)),
            ),
        ),
    ]
