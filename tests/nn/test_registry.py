"""mmfast.nn.registry: names, options, and the plugins of other distributions."""

import functools
import inspect
import math
import sys

import numpy
import pytest
import torch
from torch import nn

from mmfast.nn import ConcatLinear, registry
from mmfast.nn.registry import create_fusion, list_fusions, register_fusion
from mmfast.plugins import PluginLoadError

OWN = [
    "attention",
    "attention_pool",
    "bottleneck",
    "concat",
    "cross_attention",
    "film",
    "gated",
    "late",
    "low_rank",
    "mfb",
    "mlb",
    "mutan",
    "product",
    "sequence",
    "tensor",
    "weighted_sum",
]
NEEDED = {
    "bottleneck": {"num_heads": 2},
    "cross_attention": {"num_heads": 2},
    "low_rank": {"rank": 2},
    "mutan": {"rank": 2},
    "sequence": {"num_heads": 2},
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    """Nothing registered, and of plugins only those that a test installs."""
    monkeypatch.setattr(registry.FUSIONS, "registered", {})
    monkeypatch.setenv("MMFAST_PLUGINS", "")


@pytest.fixture
def install(install):
    return functools.partial(install, group="mmfast.fusions")


PLUGIN = """
from torch import nn

class Mean(nn.Module):
    def __init__(self, in_features, out_features, power=1):
        super().__init__()
        self.given = in_features, out_features, power

not_callable = 3
"""


# ---------------------------------------------------------------------------------- own names


def test_own_names():
    assert list_fusions() == OWN


@pytest.mark.parametrize("name", OWN)
def test_create(name):
    fusion = create_fusion(name, in_features=[6, 4], out_features=4, **NEEDED.get(name, {}))
    result = fusion([torch.randn(3, 6), torch.randn(3, 4)], torch.tensor([True, True]))
    assert result.shape in ((3, 4), (3, 1, 4))
    assert type(fusion).__module__.startswith("mmfast.nn.")


def test_create_with_options_and_names():
    fusion = create_fusion("concat", {"image": 3, "text": 5}, 6, activation="relu", bias=False)
    assert type(fusion) is ConcatLinear
    assert (fusion.names, fusion.activation, fusion.bias) == (("image", "text"), "relu", None)


# ------------------------------------------------------------------------------------- errors


def test_unknown_name():
    with pytest.raises(
        ValueError, match=r"no fusion is named 'gatted' \(did you mean 'gated'"
    ) as e:
        create_fusion("gatted", [3], 4)
    assert ", ".join(OWN) in str(e.value)
    with pytest.raises(ValueError, match=r"no fusion is named 'xyzzy'; the names are attention,"):
        create_fusion("xyzzy", [3], 4)
    with pytest.raises(ValueError, match=r"no fusion is named \['late'\] .did you mean 'late'"):
        create_fusion(["late"], [3], 4)


def test_unknown_option():
    message = (
        r"the fusion 'concat' has no option 'activaton' \(did you mean 'activation'\?\); "
        "it takes bias, activation, device, dtype"
    )
    with pytest.raises(TypeError, match=message):
        create_fusion("concat", [3], 4, activaton="relu")
    with pytest.raises(TypeError, match=r"'late' has no option 'xyzzy'; it takes weighted"):
        create_fusion("late", [3], 4, xyzzy=1)


WRONG = {
    "a tensor": torch.ones(2),
    "a tensor on meta": torch.ones((), device="meta"),
    "an array": numpy.ones(2),
    "a str": "xyzzy",
    "lists": [[1, 2], [3]],
    "NaN": math.nan,
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_told_by_the_name_of_its_option(name, wrong):
    factory = registry.FUSIONS.load(registry.FUSIONS.find(name))
    for option in inspect.signature(factory).parameters:
        if option in ("in_features", "out_features", "device", "dtype"):
            continue
        with pytest.raises((TypeError, ValueError), match=rf"\b{option} (is|must be|holds) "):
            create_fusion(name, [6, 4], 4, **{**NEEDED.get(name, {}), option: WRONG[wrong]})


def test_missing_option():
    @register_fusion("needy")
    def needy(in_features, out_features, *, rank):
        return nn.Identity()

    with pytest.raises(
        TypeError, match="the fusion 'needy' needs the option 'rank'; it takes rank"
    ):
        create_fusion("needy", [3], 4)
    assert isinstance(create_fusion("needy", [3], 4, rank=2), nn.Identity)


def test_what_the_constructor_raises_comes_through():
    with pytest.raises(ValueError, match="activation is 'swish'"):
        create_fusion("concat", [3], 4, activation="swish")


# -------------------------------------------------------------------------- register_fusion


def test_register():
    @register_fusion("mine")
    class Mine(ConcatLinear):
        pass

    assert Mine.__name__ == "Mine"
    assert "mine" in list_fusions()
    assert type(create_fusion("mine", [3], 4)) is Mine


def test_register_any_options():
    @register_fusion("free")
    def free(in_features, out_features, **options):
        return ConcatLinear(in_features, out_features, **options)

    assert create_fusion("free", [3], 4, bias=False).bias is None


def test_register_refuses():
    register_fusion("mine")(ConcatLinear)
    with pytest.raises(ValueError, match=r"'mine' is taken by mmfast\.nn\.concat_linear:ConcatLin"):
        register_fusion("mine")(nn.Linear)
    with pytest.raises(ValueError, match=r"'concat' is taken by mmfast 0\.1\.0; choose another"):
        register_fusion("concat")(nn.Linear)
    with pytest.raises(TypeError, match=r"write @register_fusion\('my_fusion'\)"):
        register_fusion(nn.Linear)


# ---------------------------------------------------------------------------------- plugins


def test_plugin(install):
    install("acme", {"acme/mean": "acme_module:Mean"}, PLUGIN)
    assert list_fusions() == sorted([*OWN, "acme/mean"])
    assert "acme_module" not in sys.modules, "listing imports nothing"
    fusion = create_fusion("acme/mean", [3], 4, power=2)
    assert fusion.given == ([3], 4, 2)
    with pytest.raises(TypeError, match="'acme/mean' has no option 'bias'; it takes power"):
        create_fusion("acme/mean", [3], 4, bias=False)
    with pytest.raises(ValueError, match=r"did you mean 'acme/mean'\?"):
        create_fusion("acme/maen", [3], 4)


def test_a_plugin_with_an_own_name(install):
    install("acme", {"late": "acme_module:Mean"}, PLUGIN)
    assert list_fusions() == OWN
    with pytest.raises(ValueError, match=r"'late' is claimed by acme 1\.2\.3 and mmfast 0\.1\.0"):
        create_fusion("late", [3], 4)
    assert "acme_module" not in sys.modules
    assert type(create_fusion("mmfast:late", [3], 4)).__module__ == "mmfast.nn.late"


def test_two_distributions_claim_a_name(install):
    install("acme", {"mean": "acme_module:Mean", "other": "acme_module:Mean"}, PLUGIN)
    install("zenith", {"mean": "zenith_module:Mean"}, PLUGIN, release="0.9")
    assert list_fusions().count("mean") == 1
    with pytest.raises(ValueError, match=r"'mean' is claimed by acme 1\.2\.3 and zenith 0\.9"):
        create_fusion("mean", [3], 4)
    assert create_fusion("other", [3], 4).given[1] == 4  # one bad name does not spoil the rest


def test_registered_name_of_a_plugin(install):
    register_fusion("mean")(ConcatLinear)
    install("acme", {"mean": "acme_module:Mean"}, PLUGIN)
    message = (
        r"acme 1\.2\.3 and mmfast\.nn\.concat.*, registered in this process; write 'acme:mean'"
    )
    with pytest.raises(ValueError, match=message):
        create_fusion("mean", [3], 4)
    assert create_fusion("acme:mean", [3], 4).given[1] == 4
    taken = registry.FUSIONS.registered.pop("mean")
    with pytest.raises(ValueError, match=r"'mean' is taken by acme 1\.2\.3"):
        register_fusion("mean")(taken.factory)


def test_plugin_that_registers_itself(install):
    code = PLUGIN + "from mmfast.nn.registry import register_fusion\nregister_fusion('mean')(Mean)"
    install("acme", {"mean": "acme_module:Mean"}, code)
    assert create_fusion("mean", [3], 4).given == ([3], 4, 1)
    assert create_fusion("mean", [3], 5).given == ([3], 5, 1)
    assert list_fusions().count("mean") == 1


@pytest.mark.parametrize(
    ("code", "value", "said", "cause"),
    [
        ("raise OSError('no disk')", "acme_module:Mean", "OSError: no disk", OSError),
        ("import xyzzy_missing", "acme_module:Mean", "No module named", ModuleNotFoundError),
        (PLUGIN, "acme_module:Missing", "no attribute 'Missing'", AttributeError),
        (PLUGIN, "acme_module:not_callable", "is a int; it must be a class, or a function", None),
    ],
)
def test_broken_plugin(install, code, value, said, cause):
    install("acme", {"mean": value, "acme/other": "acme_module:Mean"}, code)
    assert "mean" in list_fusions()
    with pytest.raises(PluginLoadError, match=rf"the fusion 'mean' of acme 1\.2\.3.*{said}") as e:
        create_fusion("mean", [3], 4)
    assert isinstance(e.value.__cause__, cause or type(None))
    create_fusion("late", [3], 4)
