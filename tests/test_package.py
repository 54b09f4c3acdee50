"""The package as a whole: what importing it needs, and which way imports run."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import mmfast

ROOT = pathlib.Path(mmfast.__file__).parent

# What a layer may import of mmfast, from the ground up.
MAY_IMPORT = {
    "ops": {"ops"},
    "functional": {"ops", "functional"},
    "plugins": {"plugins"},
    "testing": {"plugins", "testing"},
    "scaffold": {"plugins"},
    "encoders_cli": {"plugins", "scaffold", "testing"},
    "losses": {"ops", "functional", "losses"},
    "nn": {"ops", "functional", "plugins", "nn"},
    "fusing": {"ops", "functional", "fusing"},
    "encoders": {"plugins", "encoders", "nn", "functional"},
    "data": {"plugins", "encoders", "data"},
    "train": {
        "plugins",
        "encoders",
        "data",
        "nn",
        "functional",
        "losses",
        "bench",
        "doctor",
        "train",
    },
    "bench": {"ops", "functional", "losses", "nn", "bench"},
    "doctor": {"ops", "doctor"},
    "cli": set(),  # imports a command's module when it is called
}


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.split(".")[1] for name in found if name.startswith("mmfast.")} - {"_C"}


def test_imports_run_one_way():
    seen = set()
    for path in ROOT.rglob("*.py"):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer in MAY_IMPORT:
            seen.add(layer)
            siblings = {p.name.removesuffix(".py") for p in ROOT.iterdir()}
            reached = imports(path) & siblings
            assert reached <= MAY_IMPORT[layer], (
                f"{path.name} imports {reached - MAY_IMPORT[layer]}"
            )
    assert seen == set(MAY_IMPORT)


def python(code: str, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


def test_import_needs_only_torch_and_numpy():
    code = """
import sys, torch, numpy
before = set(sys.modules)
import mmfast
mmfast.nn.ConcatLinear([2, 3], 4)([torch.ones(1, 2), torch.ones(1, 3)])
mmfast.list_encoders()
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert [name for name in ast.literal_eval(done.stdout) if name not in ("torch", "numpy")] == [
        "mmfast"
    ]


def test_version():
    """It stands in pyproject.toml and nowhere else."""
    root = pathlib.Path(__file__).parent.parent
    stated = re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert mmfast.__version__ == stated.group(1)
    for path in (root / "setup.py", root / "mmfast" / "__init__.py", root / "mkdocs.yml"):
        assert stated.group(1) not in path.read_text()


def test_broken_library_is_told():
    done = python("import sys; sys.modules['mmfast._C'] = None; import mmfast; mmfast.nn")
    assert done.returncode == 1
    assert "compiled library could not be loaded" in done.stderr
    assert "make build" in done.stderr


def test_old_torch_is_refused():
    done = python("import torch; torch.__version__ = '2.9.1'; from mmfast import concat_linear")
    assert done.returncode == 1
    assert "mmfast needs torch 2.10 or newer, but torch is 2.9.1" in done.stderr


ROWS = ("weighted_sum", "attention_pool", "gated_sum", "rank_product")  # tested by one suite
LEVELS = {
    "csrc/cpu/{}.cpp": ("concat_linear", "merge_attention", *ROWS),
    "mmfast/ops/{}.py": ("concat_linear", "multi_source_attention", *ROWS),
    "mmfast/functional/{}.py": ("concat_linear", "multi_source_attention", "tensor_fusion", *ROWS),
    "mmfast/nn/{}.py": ("concat_linear", "multi_source_attention", "tensor_fusion", *ROWS),
    "tests/ops/test_{}.py": (
        "concat_linear", "multi_source_attention", "merge_attention", "fused",
    ),
    "tests/nn/test_{}.py": ("concat_linear", "multi_source_attention", "tensor_fusion", *ROWS),
    "benchmarks/test_{}.py": (
        "concat_linear", "multi_source_attention", "tensor_fusion", "contrastive_loss", *ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_one_operator_one_name(level):
    """The same file name at every level at which an operator exists."""
    repository = ROOT.parent
    if not (repository / "csrc").is_dir():
        pytest.skip("not a source tree: the installed package has no csrc")
    for name in LEVELS[level]:
        assert (repository / level.format(name)).is_file(), level.format(name)


def test_every_operator_is_listed():
    """Whatever is registered is held to one name."""
    from torch._C import _dispatch_get_all_op_names

    import mmfast  # noqa: F401

    names = {
        name.removeprefix("mmfast::").split(".")[0].removesuffix("_backward").removesuffix("_plain")
        for name in _dispatch_get_all_op_names()
        if name.startswith("mmfast::")
    }
    assert names == set(LEVELS["csrc/cpu/{}.cpp"])
