"""mmfast.create_encoder and register_encoder: every way in which a plugin can fail, told."""

import pickle
import sys

import pytest
from torch import nn

import mmfast
from mmfast.plugins import PluginLoadError, encoder_info, fit_encoder_options
from mmfast.plugins.encoders import ENCODERS

ENCODER = """
from torch import nn
from mmfast.plugins import EncoderSpec

class A(nn.Module):
    def __init__(self, out_dim=4, *, name="x"):
        super().__init__()
        self.given = out_dim, name
        self.spec = EncoderSpec(api_version=1, modality="image", out_dim=out_dim)
    def preprocess(self, raw): ...
    def collate(self, samples): ...
    def layer_groups(self): return []

def make(size): return A(size)
not_callable = 3
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(ENCODERS, "registered", {})


@pytest.fixture
def acme(install):
    """A distribution with an encoder that works, and one with the target and code of a test."""

    def make(code="", target="acme_module:A [image]"):
        install("zenith", {"zenith/fine": "zenith_module:A [image]"}, ENCODER)
        install("acme", {"acme/a": target}, code)

    return make


# ------------------------------------------------------------------------------- what works


def test_create(acme):
    acme(ENCODER)
    assert mmfast.create_encoder("acme/a").given == (4, "x")
    # An option may be called as the parameter is.
    assert mmfast.create_encoder("acme/a", out_dim=3, name="y").given == (3, "y")


def test_create_by_function(acme):
    acme(ENCODER, "acme_module:make [image]")
    assert mmfast.create_encoder("acme/a", size=7).given[0] == 7


def test_options_are_checked_before_the_call(acme):
    acme(ENCODER)
    message = r"the encoder 'acme/a' has no option 'outdim' \(did you mean 'out_dim'\?\); it takes"
    with pytest.raises(TypeError, match=message):
        mmfast.create_encoder("acme/a", outdim=3)


def test_what_the_constructor_raises_comes_through(acme):
    acme(ENCODER)
    with pytest.raises(ValueError, match="out_dim is 0; it must be at least 1"):
        mmfast.create_encoder("acme/a", out_dim=0)


# ------------------------------------------------------------------------- names and claims


def test_unknown_name(acme):
    acme(ENCODER)
    with pytest.raises(
        ValueError, match=r"no encoder is named 'acme/b' \(did you mean 'acme/a'"
    ) as e:
        mmfast.create_encoder("acme/b")
    assert "the names are acme/a, audio_autoencoder, " in str(e.value)


def test_two_distributions_claim_a_name(install):
    install("acme", {"a": "acme_module:A"}, ENCODER)
    install("zenith", {"a": "zenith_module:A", "other": "zenith_module:A"}, ENCODER, "0.9")
    message = (
        r"the encoder name 'a' is claimed by acme 1\.2\.3 and zenith 0\.9; "
        "write 'acme:a' or 'zenith:a', or uninstall one of them"
    )
    with pytest.raises(ValueError, match=message):
        mmfast.create_encoder("a")
    assert not {"acme_module", "zenith_module"} & set(sys.modules)
    assert type(mmfast.create_encoder("acme:a")).__module__ == "acme_module"
    assert type(mmfast.create_encoder("Zenith:a")).__module__ == "zenith_module"
    assert type(mmfast.create_encoder("other")).__module__ == "zenith_module"
    assert mmfast.list_encoders().count("a") == 1
    with pytest.raises(ValueError, match="no encoder is named 'mmfast:a'"):
        mmfast.create_encoder("mmfast:a")


# ----------------------------------------------------------------------- plugins that break

BASE = "class Panic(BaseException): pass\nraise Panic('thread panicked')"


@pytest.mark.parametrize(
    ("code", "target", "said", "cause"),
    [
        ("raise OSError('no disk')", "acme_module:A", "OSError: no disk", OSError),
        ("import sys; sys.exit(3)", "acme_module:A", "SystemExit: 3", SystemExit),
        (BASE, "acme_module:A", "Panic: thread panicked", BaseException),
        ("x = (", "acme_module:A", "SyntaxError", SyntaxError),
        ("import xyzzy_missing", "acme_module:A", "No module named 'xyzzy", ModuleNotFoundError),
        ("", "acme_gone:A", "No module named 'acme_gone'", ModuleNotFoundError),
        ("", "acme_module:Gone", "no attribute 'Gone'", AttributeError),
        ("", "acme_module", "names no attribute; it must be module:attribute", None),
        (ENCODER, "acme_module:not_callable", "is a int; it must be a class", None),
    ],
)
def test_broken_plugin(acme, code, target, said, cause):
    acme(code, target)
    with pytest.raises(PluginLoadError, match=said) as e:
        mmfast.create_encoder("acme/a")
    error = e.value
    assert f"the encoder 'acme/a' of acme 1.2.3 ({target})" in str(error)
    facts = (error.plugin, error.distribution, error.version, error.target)
    assert facts == ("acme/a", "acme", "1.2.3", target)
    assert isinstance(error.__cause__, cause or type(None))
    copied = pickle.loads(pickle.dumps(error))  # as a worker sends it
    assert (str(copied), copied.version) == (str(error), "1.2.3")
    # The others are not disturbed.
    assert {"acme/a", "zenith/fine"} <= set(mmfast.list_encoders())
    assert mmfast.create_encoder("zenith/fine").given == (4, "x")


def test_interrupting_an_import_interrupts(acme):
    acme("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        mmfast.create_encoder("acme/a")


def test_what_an_import_prints_goes_to_stderr(acme, capsys):
    acme("print('welcome to acme')\n" + ENCODER)
    mmfast.create_encoder("acme/a")
    assert capsys.readouterr() == ("", "welcome to acme\n")


# ------------------------------------------------------------ what is made is no encoder


def refused(said):
    with pytest.raises(PluginLoadError, match=said) as e:
        mmfast.create_encoder("acme/a")
    assert "the encoder 'acme/a' of acme 1.2.3" in str(e.value)
    assert e.value.distribution == "acme"


def test_newer_api_version(acme):
    acme(ENCODER.replace("api_version=1", "api_version=2"))
    refused(r"a newer version of the encoder contract than 1, .* mmfast 0\.1\.0 .*; upgrade mmfast")


def test_field_of_a_newer_api_version(acme):
    acme(ENCODER.replace("api_version=1", "api_version=2, frame_rate=25"))
    refused("newer version .*; upgrade mmfast: .*unexpected keyword argument 'frame_rate'")


def test_older_api_version(acme, monkeypatch):
    acme(ENCODER)
    monkeypatch.setattr("mmfast.plugins.encoders.API_VERSION", 2)
    refused(r"an older version of the encoder contract than 2, .*; upgrade acme \(it says 1\)")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return A(size)", "return 3", "makes a int; it must make a torch.nn.Module"),
        ("self.spec = ", "spec = ", "has the spec None; it must be a mmfast.plugins.EncoderSpec"),
        ("self.spec = EncoderSpec", "self.spec = dict", "has the spec .*it must be a mmfast"),
        ("def collate", "def colate", "has no method collate; the contract is"),
        ('"image"', '"text"', "is announced for image, but its spec says text; the brackets"),
    ],
)
def test_no_encoder(acme, old, new, said):
    code = ENCODER.replace(old, new).replace("make(size)", "make(size=1)")
    acme(code, "acme_module:make [image]")
    refused(said)


# ---------------------------------------------------------------- fit_options, registering


def test_fit_encoder_options(acme):
    fitting = """
    @classmethod
    def fit_options(cls, samples, **options):
        return {"out_dim": len(samples), **options}
"""
    acme(ENCODER.replace("    def preprocess", fitting + "    def preprocess"))
    assert fit_encoder_options("acme/a", [1, 2, 3], name="y") == {"out_dim": 3, "name": "y"}
    assert fit_encoder_options("acme/a", [1, 2, 3], out_dim=1) == {"out_dim": 1}
    assert fit_encoder_options("zenith/fine", [1, 2, 3], out_dim=5) == {"out_dim": 5}


def mine(modality="image", **options):
    namespace = {}
    exec(ENCODER.replace('"image"', repr(modality)), namespace)
    return namespace["A"](**options)


def test_register(install):
    assert mmfast.register_encoder("mine", modality="image")(mine) is mine
    assert "mine" in mmfast.list_encoders("image")
    assert "mine" not in mmfast.list_encoders("text")
    assert isinstance(mmfast.create_encoder("mine", out_dim=2), nn.Module)
    assert encoder_info("mine").source.endswith("test_encoders:mine, registered in this process")
    with pytest.raises(PluginLoadError, match="announced for image, but its spec says text"):
        mmfast.create_encoder("mine", modality="text")


def test_registering_again_replaces(install):
    def cell():
        def again(): ...

        again.__qualname__ = "again"  # as at the top of a notebook
        return again

    first, second = cell(), cell()
    mmfast.register_encoder("mine")(first)
    mmfast.register_encoder("mine")(second)
    assert encoder_info("mine").factory is second
    with pytest.raises(ValueError, match=r"'mine' is taken by .*:again"):
        mmfast.register_encoder("mine")(mine)


def test_register_refuses(install):
    with pytest.raises(TypeError, match=r"write @register_encoder\('my_encoder'\)"):
        mmfast.register_encoder(mine)
    with pytest.raises(TypeError, match="the encoder 'x' is 3; it must be a class or a function"):
        mmfast.register_encoder("x")(3)
    with pytest.raises(ValueError, match="'a:b' must not be empty or have a colon"):
        mmfast.register_encoder("a:b")
    with pytest.raises(ValueError, match="modality is 'smell'; it must be one of image, text"):
        mmfast.register_encoder("x", modality="smell")
    with pytest.raises(ValueError, match="modality is 'smell'"):
        mmfast.list_encoders("smell")
    with pytest.raises(ValueError, match=r"'text_bag' is taken by mmfast 0\.1\.0"):
        mmfast.register_encoder("text_bag")(mine)


def test_plugin_that_registers_itself(acme):
    acme(ENCODER + "import mmfast\nmmfast.register_encoder('acme/a', 'image')(A)")
    assert mmfast.create_encoder("acme/a").given == (4, "x")
    assert mmfast.create_encoder("acme/a").given == (4, "x")
    assert mmfast.list_encoders().count("acme/a") == 1
