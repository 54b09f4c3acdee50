"""Nothing that a stranger wrote is run: no pickle, no tag, no path of an import, no template.

Every attack below would leave a file behind if its code ran.
"""

import ast
import contextlib
import hashlib
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from confined import confined
from data_files import write_tar
from pipeline import write_config
from safetensors.torch import save_file

import mmfast
from mmfast.cli import main
from mmfast.data import ColumnSpec, Table, read_cell, read_table
from mmfast.plugins import PluginLoadError, create_encoder, list_encoders
from mmfast.train import Run, load_config
from mmfast.train.checkpoint import CheckpointError
from mmfast.train.yaml_source import ConfigError, parse_yaml


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    """The file that an attack makes when it succeeds."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "made")))
    assert (tmp_path / "made").exists()


# What in the package could run data


CALLS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "runpy"}
# Each with its reason.
ALLOWED = {
    "fusing/source.py": {"compile"},  # methods of the user's own model, from their file
    "testing/workers.py": {"pickle"},  # what the kit itself sends to its own worker
    "testing/data_checks.py": {"pickle", "torch.load"},  # what the kit itself has just saved
}


def risky(path):
    """The names in a file by which data could become code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from MODULES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            yield from MODULES & {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called in ("torch.load", "yaml.load", "os.system", "os.popen"):
                yield called
            for keyword in node.keywords:
                said = f"{keyword.arg}={ast.unparse(keyword.value)}"
                if said in ("trust_remote_code=True", "weights_only=False", "shell=True"):
                    yield said
                if (
                    keyword.arg == "allow_pickle"
                    and called.endswith("load")
                    and "False" not in said
                ):
                    yield said


def test_where_data_could_become_code():
    package = Path(mmfast.__file__).parent
    found = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if (names := set(risky(path)))
    }
    assert found == ALLOWED


# Files of data


def read(cell, modality, root=None):
    return read_cell(Table({"x": [cell]}, base=root), 0, ColumnSpec("x", modality))


def pickled_array(trap):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(trap)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("way", ["file", "bytes", "row"])
def test_a_pickle_in_an_array(tmp_path, trap, way):
    data = pickled_array(trap)
    (tmp_path / "x.npy").write_bytes(data)
    cell = {"file": "x.npy", "bytes": data, "row": "x.npy#0"}[way]
    with pytest.raises(ValueError, match=r"is no readable \.npy array"):
        read(cell, "features", tmp_path)


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
@pytest.mark.parametrize("modality", ["features", "image", "audio", "video"])
def test_a_pickle_under_another_name(tmp_path, trap, name, modality):
    data = pickle.dumps(Trap(trap))
    (tmp_path / name).write_bytes(data)
    for cell in (name, data):
        with pytest.raises(ValueError, match=r"x\.|row 0"):
            read(cell, modality, tmp_path)


def test_a_pickle_in_a_shard(tmp_path, trap):
    """Endings by which the library webdataset unpickles: pyd, pickle, pth."""
    data = pickle.dumps(Trap(trap))
    path = write_tar(tmp_path / "x.tar", [("a.pyd", data), ("a.pth", data), ("a.npy", data)])
    table = read_table(path)
    for column in ("pyd", "pth", "npy"):
        with pytest.raises(ValueError, match=r"is neither \.npy nor \.safetensors"):
            read_cell(table, 0, ColumnSpec(column, "features"))


def test_a_pickle_in_a_parquet_file(tmp_path, trap):
    """An extension type of pyarrow's names a Python class by a pickle in the metadata."""
    field = pa.field(
        "x",
        pa.binary(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Trap(trap)),
        },
    )
    table = pa.table([pa.array([b"data"])], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet").cell(0, "x") == b"data"
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    (tmp_path / "dataset_info.json").write_text("{}")
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as stream:
        stream.write_table(table)
    assert read_table(tmp_path).cell(0, "x") == b"data"


def test_an_image_that_is_a_program(trap):
    """PostScript, for which Pillow would start Ghostscript."""
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({trap}) (w) file closefile\n"
    with pytest.raises(ValueError, match="its format is not known"):
        read(program.encode(), "image")


# Configurations


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch {trap}']",
        "seed: !!python/object/new:os.system ['touch {trap}']",
        "seed: !!python/name:os.system",
        "seed: !!python/module:{trap}",
        "? !!python/object/apply:os.system ['touch {trap}']\n: 1",
        "seed: !!binary aGVsbG8=",
        "seed: !!set {{a, b}}",
        "seed: !!bool perhaps",
        "seed: !!timestamp never",
        "seed: !!int x",
        "seed: ! x",
        "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nseed: !os.system ['touch {trap}']",
    ],
)
def test_yaml_tags(trap, text):
    with pytest.raises(ConfigError, match=r"x\.yaml:[13]: no valid YAML: tags"):
        parse_yaml(text.format(trap=trap), "x.yaml")


def test_yaml_that_unfolds():
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    with pytest.raises(ConfigError, match=r"x\.yaml:2: no valid YAML: aliases"):
        parse_yaml("\n".join(lines), "x.yaml")
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("a: &a [*a]", "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 20_000, "is nested too deeply"),
        ("a: " + "9" * 10_000, "no valid YAML: Exceeds the limit"),
        ("a: '" + "x" * (1 << 20) + "'", "has more than 1048576 characters"),
    ],
)
def test_yaml_without_measure(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    for attempt in (lambda: parse_yaml(text, "x"), lambda: load_config(tmp_path / "x.yaml")):
        with pytest.raises(ConfigError, match=message):
            attempt()


NAMES = [
    "os:system",
    "os.system",
    "mmfast.encoders.image:ImageConvNet",
    "builtins:eval",
    "../evil",
    "/tmp/evil.py",
    "__import__('os').system('true')",
    "{0.__class__}",
    "%(name)s",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_path_of_an_import(tmp_path, name, monkeypatch):
    """Of an encoder, a fusion, a dataset, a metric, an activation."""
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path)
    for key in ("model.encoders.words.name", "model.fusion.name", "data.source", "task.metric"):
        assert main(["train", str(path), f"{key}={json.dumps(name)}", "train.epochs=1"]) != 0, key
    with pytest.raises(ValueError, match="activation"):
        mmfast.nn.ConcatLinear([2, 3], 4, activation=name)


def test_text_of_a_stranger_in_a_message_stays_text(tmp_path, capsys):
    path = write_config(tmp_path)
    for name in ("{0.__class__.__init__.__globals__}", "%s%s%s%n"):
        assert main(["train", str(path), f"train.optimizer='{name}'"]) == 1
        assert repr(name) in capsys.readouterr().err


# Plugins


def test_a_folder_of_data_is_no_plugin(tmp_path, trap, monkeypatch):
    """Metadata beside a table announces nothing, unless Python itself is told to look there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(trap)!r}, 'w')")
    made = tmp_path / "evil-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Name: evil\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text("[mmfast.encoders]\nevil = evil:Encoder\n")
    assert "evil" not in list_encoders()
    with pytest.raises(ValueError, match="no encoder is named 'evil'"):
        create_encoder("evil")


@pytest.mark.parametrize("target", ["evil", "evil:", "evil:a b", "os:system('touch {}')", ":x"])
def test_an_entry_point_that_is_an_expression(install, trap, target):
    install("acme", {"acme/x": target.format(trap)})
    with pytest.raises(PluginLoadError, match="acme"):
        create_encoder("acme/x")


def test_what_is_not_allowed_is_not_imported(install, trap, monkeypatch):
    install("acme", {"acme/x": "acme:Encoder"}, f"open({str(trap)!r}, 'w')")
    monkeypatch.setenv("MMFAST_PLUGINS", "")
    with pytest.raises(ValueError, match="MMFAST_PLUGINS does not allow"):
        create_encoder("acme/x")


# Weights of other libraries


def bert(folder):
    """A model folder as ``save_pretrained`` writes it, of random weights."""
    import hf_models
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model("bert", **hf_models.TEXT)
    AutoModel.from_config(config).save_pretrained(folder)
    hf_models.tokenizer(folder)
    return folder


def test_a_pickle_of_weights_holds_tensors_alone(tmp_path, trap):
    """A configuration may ask for pickles; even then only tensors come out of one."""
    folder = bert(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap)))
    for allowed in (False, True):
        with pytest.raises(Exception, match=r"pickle|weights_only|Weights only"):
            create_encoder("hf", model=str(folder), allow_pickle=allowed)
    torch.save({"embeddings": Trap(trap)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"pickle|weights_only|Weights only"):
        create_encoder("hf", model=str(folder), allow_pickle=True)


@pytest.mark.parametrize("kind", ["AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"])
def test_code_beside_a_model(tmp_path, trap, kind):
    folder = bert(tmp_path / "model")
    (folder / "code.py").write_text(f"open({str(trap)!r}, 'w')")
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps({"auto_map": {kind: "code.X"}}))
    with contextlib.suppress(ValueError, OSError):  # whether it can be used is another question
        create_encoder("hf", model=str(folder))


def test_an_adapter_beside_a_model(tmp_path):
    """PEFT would fetch the model that the adapter names, and imports modules that it names."""
    folder = bert(tmp_path / "model")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "stranger/model", "r": 1})
    )
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        create_encoder("hf", model=str(folder))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_of_the_hub(tmp_path, key):
    """transformers would fetch a compiled kernel of that name, and run it."""
    import hf_models

    config = {"model_type": "bert", **hf_models.TEXT, key: "stranger/kernel"}
    with pytest.raises(ValueError, match=r"attn_implementation is 'stranger/kernel'"):
        create_encoder("hf", config=config)
    folder = bert(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: "stranger/kernel"}))
    with pytest.raises(ValueError, match=r"attn_implementation is 'stranger/kernel'"):
        create_encoder("hf", model=str(folder))


# Checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", str(write_config(folder)), "train.epochs=1"]) == 0
    return folder / "run"


def forged(run, folder, files):
    """A copy of a run in which files of its best checkpoint are others, digests and all."""
    shutil.copytree(run, folder, symlinks=True)
    place = (folder / "best").resolve()
    manifest = json.loads((place / "manifest.json").read_text())
    for name, data in files.items():
        (place / name).write_bytes(data)
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "task.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint(trained, tmp_path, trap, name, capsys):
    run = forged(trained, tmp_path / "run", {name: pickle.dumps(Trap(trap))})
    assert main(["evaluate", str(run)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_pickle_beside_a_checkpoint(trained, tmp_path, trap):
    """Listed in the manifest under the names by which other libraries read pickles."""
    data = pickle.dumps(Trap(trap))
    names = ("optimizer.bin", "pytorch_model.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl")
    run = forged(trained, tmp_path / "run", dict.fromkeys(names, data))
    assert main(["evaluate", str(run)]) == 0


def test_a_name_in_a_checkpoint_is_no_path_of_an_import(trained, tmp_path, capsys):
    config = (trained / "best" / "config.yaml").read_text()
    found = config.count("text_hashed")
    assert found
    run = forged(
        trained,
        tmp_path / "run",
        {"config.yaml": config.replace("text_hashed", "os:system").encode()},
    )
    assert main(["evaluate", str(run)]) == 1
    assert "no encoder is named 'os:system'" in capsys.readouterr().err


def damaged_states(state):
    """The state with each of its entries, and each entry of those, made something else."""
    for key, value in state.items():
        for other in (None, 7, "x", [], {"x": 1}):
            yield {**state, key: other}
        if isinstance(value, dict):
            for inner in value:
                for other in (None, "x"):
                    yield {**state, key: {**value, inner: other}}


def test_a_state_of_other_things(trained, tmp_path, capsys):
    """Told in a sentence or harmless; nothing ends in a traceback."""
    state = json.loads((trained / "best" / "state.json").read_text())
    run = forged(trained, tmp_path / "run", {})
    place = (run / "best").resolve()
    manifest = json.loads((place / "manifest.json").read_text())
    cases = list(damaged_states(state))
    assert len(cases) > 50
    failed = 0
    for case in cases:
        data = json.dumps(case).encode()
        (place / "state.json").write_bytes(data)
        manifest["files"]["state.json"] = hashlib.sha256(data).hexdigest()
        (place / "manifest.json").write_text(json.dumps(manifest))
        failed += _load(run)
    assert failed > 20


def _load(run):
    try:
        Run.load(run)
    except (CheckpointError, ValueError, TypeError, PluginLoadError):
        return 1
    return 0


@pytest.mark.parametrize("width", [40_000_000, 1 << 50])
def test_a_model_larger_than_its_weights(trained, tmp_path, width):
    """A few letters of config.yaml ask for gigabytes."""
    config = (trained / "best" / "config.yaml").read_text()
    assert config.count("out_features: 16") == 1
    config = config.replace("out_features: 16", f"out_features: {width}")
    run = forged(trained, tmp_path / "run", {"config.yaml": config.encode()})
    outcome = confined(Run.load, run, memory=8 << 30)
    assert outcome.error == "CheckpointError", outcome
    assert "they do not belong together" in outcome.message
    assert outcome.grown < 100 << 20


def test_tensors_of_other_kinds(trained, tmp_path, capsys):
    """Of another dtype, shape or name than the model's."""
    for tensors in (
        {},
        {"x": torch.zeros(3)},
        {"output.weight": torch.zeros(1, 1)},
        {"output.weight": torch.zeros(0)},
        {"output.weight": torch.zeros(3, dtype=torch.complex64)},
    ):
        save_file(tensors, tmp_path / "x.safetensors")
        data = (tmp_path / "x.safetensors").read_bytes()
        run = forged(
            trained, tmp_path / f"run{len(list(tmp_path.iterdir()))}", {"model.safetensors": data}
        )
        assert main(["evaluate", str(run)]) == 1
        assert "does not fit its model" in capsys.readouterr().err
