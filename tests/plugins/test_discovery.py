"""mmfast.plugins.discovery: what metadata say, without importing anything."""

import subprocess
import sys

import pytest
from distributions import write_distribution

from mmfast.plugins import MODALITIES, encoder_info, list_encoders
from mmfast.plugins.discovery import allow_list, installed, normalized

OWN = [
    "audio_autoencoder",
    "audio_convnet",
    "audio_lstm",
    "feature_sequence",
    "features",
    "hf",
    "image_convnet",
    "image_transformer",
    "tabular_mlp",
    "text_bag",
    "text_flat",
    "text_hashed",
    "text_lstm",
    "text_transformer",
    "timm",
    "video_frames",
]


def test_own_encoders(install):
    assert list_encoders() == OWN
    assert list_encoders("text") == ["hf", *OWN[9:14]]
    assert {name for modality in MODALITIES for name in list_encoders(modality)} == set(OWN)


def test_listing_imports_nothing(install):
    install("acme", {"acme/a": "acme_module:A [image]"}, "raise RuntimeError")
    assert "acme/a" in list_encoders("image")
    assert encoder_info("acme/a").target == "acme_module:A"
    assert "acme_module" not in sys.modules


def test_listing_in_a_fresh_process_imports_no_encoder():
    code = (
        "import sys, mmfast; mmfast.list_encoders()\n"
        "print([m for m in sys.modules if m.startswith(('mmfast.encoders', 'transformers', "
        "'timm', 'pydantic', 'accelerate', 'rich'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("brackets", "modalities"),
    [("", ()), (" [image]", ("image",)), ("[audio,text]", ("audio", "text"))],
)
def test_brackets(install, brackets, modalities):
    install("acme", {"acme/a": f"acme_module:A{brackets}"})
    info = encoder_info("acme/a")
    assert info.modalities == modalities
    assert ("acme/a" in list_encoders("audio")) == ("audio" in modalities)
    assert "acme/a" in list_encoders()


def test_facts(install):
    headers = "License-Expression: MIT\nSummary: an encoder\n"
    install("acme-enc", {"a": "m:A"}, headers=headers, readme="Name: wrong\nVersion: wrong\n")
    info = encoder_info("a")
    assert (info.distribution, info.version, info.licence) == ("acme-enc", "1.2.3", "MIT")
    assert info.source == "acme-enc 1.2.3"
    assert info.factory is None


def test_older_licence_header(install):
    install("acme", {"a": "m:A"}, headers="License: BSD-3-Clause\n")
    assert encoder_info("a").licence == "BSD-3-Clause"


def test_a_readme_states_no_licence(install):
    install("acme", {"a": "m:A"}, readme="License: whatever the README says\n")
    assert encoder_info("a").licence == ""


def test_a_distribution_found_twice_is_one(install, tmp_path, monkeypatch):
    install("acme-enc", {"a": "new_module:A", "b": "new_module:B"}, release="2.0")
    write_distribution(tmp_path / "old", "Acme_Enc", {"mmfast.encoders": {"a": "old_module:A"}})
    monkeypatch.syspath_prepend(tmp_path / "old")
    found = [p for p in installed("mmfast.encoders") if normalized(p.distribution) == "acme-enc"]
    assert [(p.name, p.target, p.version) for p in found] == [("a", "old_module:A", "1.2.3")]
    monkeypatch.setattr(sys, "path", [*sys.path[1:], sys.path[0]])
    assert encoder_info("a").target == "new_module:A"


def test_egg_info_of_a_source_tree(tmp_path, monkeypatch):
    folder = tmp_path / "acme.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 0.5\n")
    (folder / "entry_points.txt").write_text("[mmfast.encoders]\na = acme_module:A [text]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert encoder_info("a").source == "acme 0.5"


@pytest.mark.parametrize(
    "text", [b"[mmfast.encoders]\nno equals sign\n", b"[mmfast.encoders]\na = \xff\xfe\n"]
)
def test_unreadable_metadata_hide_nothing_else(install, text):
    site = install("acme", {"a": "m:A"})
    install("zenith", {"z": "m:Z"})
    (site / "acme-1.2.3.dist-info" / "entry_points.txt").write_bytes(text)
    with pytest.warns(UserWarning, match="is ignored: "):
        assert list_encoders() == sorted([*OWN, "z"])


def test_distribution_without_metadata(install, monkeypatch):
    site = install("acme", {"a": "m:A"})
    (site / "acme-1.2.3.dist-info" / "METADATA").unlink()
    monkeypatch.delenv("MMFAST_PLUGINS")
    assert encoder_info("a").source == "an unknown distribution"


# ------------------------------------------------------------------------- MMFAST_PLUGINS


def test_allow_list(install, monkeypatch):
    install("acme-enc", {"a": "m:A"})
    install("zenith", {"z": "m:Z"})
    monkeypatch.setenv("MMFAST_PLUGINS", " Acme_Enc , other")
    assert allow_list() == {"acme-enc", "other"}
    assert list_encoders() == sorted([*OWN, "a"])
    message = (
        r"the encoder 'z' is of zenith 1\.2\.3, which MMFAST_PLUGINS does not allow; add zenith"
    )
    with pytest.raises(ValueError, match=message):
        encoder_info("z")
    monkeypatch.setenv("MMFAST_PLUGINS", "")
    assert list_encoders() == OWN
    monkeypatch.delenv("MMFAST_PLUGINS")
    assert {"a", "z", *OWN} <= set(list_encoders())


def test_what_is_not_allowed_takes_no_name(install, monkeypatch):
    install("acme", {"a": "m:A"})
    install("zenith", {"a": "m:Z"})
    monkeypatch.setenv("MMFAST_PLUGINS", "zenith")
    assert encoder_info("a").distribution == "zenith"
