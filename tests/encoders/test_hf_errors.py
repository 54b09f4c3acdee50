"""The encoder `hf`: what it refuses, and what it says then."""

import subprocess
import sys

import hf_models
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from mmfast.encoders.hf import HuggingFace

BERT = {"model_type": "bert", **hf_models.TEXT}


@pytest.fixture
def words(tmp_path):
    return hf_models.tokenizer(tmp_path / "words")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either model.*or config.*got neither"),
        ({"model": "x", "config": BERT}, "got both"),
        ({"config": hf_models.TEXT}, "config has no 'model_type'"),
        ({"config": {"model_type": "brt"}}, "no model_type 'brt'"),
        ({"config": BERT}, "needs processor"),
        ({"config": hf_models.TOWERS}, "has several towers.*'text' or 'image'; got None"),
        ({"config": BERT, "modality": "image"}, "BertModel takes input_ids, which is text"),
        ({"config": BERT, "modality": "smell"}, "modality is 'smell'"),
        ({"config": BERT, "output": "both"}, "output is 'both'"),
        ({"config": BERT, "pooling": "max"}, "pooling is 'max'"),
        ({"config": BERT, "output": "tokens", "pooling": "mean"}, "pooling says how"),
        ({"config": BERT, "max_length": 0}, "max_length is 0"),
        (
            {"config": {"model_type": "vit", **hf_models.PIXELS}, "max_length": 9},
            "images have none",
        ),
        (
            {"config": {"model_type": "clip_vision_model", **hf_models.PIXELS}},
            "no processor of 'clip_vision_model'.*'image_processor_type'",
        ),
        (
            {
                "config": {"model_type": "vit", **hf_models.PIXELS},
                "processor": {"size": {"height": 64, "width": 64}},
            },
            "cannot be run.*give the processor that belongs",
        ),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        HuggingFace(**options)


def test_more_tokens_than_the_model_takes(words):
    with pytest.raises(ValueError, match="max_length is 40; the model takes at most 32"):
        HuggingFace(config=BERT, processor=words, max_length=40)


def test_a_model_without_pooler(words):
    config = {**hf_models.FAMILIES["gpt2_last"]["config"]}
    with pytest.raises(ValueError, match=r"GPT2Model cannot be run.*pooling 'pooler'"):
        HuggingFace(config=config, processor=words, pooling="pooler")


@pytest.mark.parametrize(
    ("raw", "family", "message"),
    [
        (b"bytes", "bert", "text is a bytes; it must be a str"),
        (torch.zeros(3, 8, 8), "vit", "must be uint8"),
        (torch.zeros(100), "wav2vec2_tokens", "must be a Waveform"),
    ],
)
def test_raw_samples(raw, family, message, tmp_path):
    encoder = HuggingFace(**hf_models.options(family, tmp_path))
    with pytest.raises(TypeError, match=message):
        encoder.preprocess(raw)


def test_images_of_many_sizes_say_how_to_get_one(tmp_path):
    config = hf_models.FAMILIES["resnet"]["config"]
    encoder = HuggingFace(config=config, processor={"do_resize": False})
    samples = [encoder.preprocess(raw) for raw in hf_models.raw_samples("image")]
    with pytest.raises(ValueError, match=r"one batch needs one shape: give the processor a fixed"):
        encoder.collate(samples)


def test_no_such_folder():
    with pytest.raises(FileNotFoundError, match=r"'\./nowhere' is no folder here"):
        HuggingFace("./nowhere")


def test_a_name_on_the_hub_without_the_hub():
    with pytest.raises(FileNotFoundError, match=r"'org/name' is no folder.*HF_HUB_OFFLINE") as info:
        HuggingFace("org/name")
    assert isinstance(info.value.__cause__, OSError)


def test_a_folder_without_a_tokenizer(tmp_path):
    AutoModel.from_config(AutoConfig.for_model(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no vocabulary"):
        HuggingFace(str(tmp_path))


def test_a_pickle_is_read_only_when_asked_for(tmp_path):
    model = AutoModel.from_config(AutoConfig.for_model(**BERT))
    model.config.save_pretrained(tmp_path)
    hf_models.tokenizer(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no usable model.safetensors.*allow_pickle=True"):
        HuggingFace(str(tmp_path))
    encoder = HuggingFace(str(tmp_path), allow_pickle=True)
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(encoder.model.state_dict()[name], model.state_dict()[name])


def test_weights_that_a_checkpoint_lacks(tmp_path):
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(**BERT)).save_pretrained(tmp_path)
    hf_models.tokenizer(tmp_path)
    HuggingFace(str(tmp_path))  # it has no pooler, which nobody asks for here
    with pytest.raises(ValueError, match=r"lacks 2 weights.*pooler\.dense"):
        HuggingFace(str(tmp_path), pooling="pooler")


def test_code_of_a_repository_is_not_run(tmp_path):
    trap = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(trap)!r}, 'w')")
    (tmp_path / "config.json").write_text(
        '{"model_type": "trap", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.M"}}'
    )
    with pytest.raises(ValueError, match="needs Python code of its own repository"):
        HuggingFace(str(tmp_path))
    assert not trap.exists()


@pytest.mark.parametrize(
    "setup",
    ["sys.modules['transformers'] = None", "sys.path.insert(0, '.')"],
    ids=["missing", "beside a torchvision that does not load"],
)
def test_transformers_cannot_be_imported(setup, tmp_path):
    for path, text in (
        ("torchvision/__init__.py", "raise RuntimeError('torchvision::nms does not exist')"),
        ("torchvision-0.28.0.dist-info/METADATA", "Name: torchvision\nVersion: 0.28.0\n"),
    ):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)
    code = f"import sys; {setup}; import mmfast.encoders.hf"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "pip install 'mmfast[hf]'" in last
    assert "torchvision, it must be one built for this torch" in last
