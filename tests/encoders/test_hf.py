"""The encoder `hf`: every family that it names, through the kit, against transformers itself."""

import subprocess
import sys

import hf_models
import pytest
import torch
from transformers import AutoConfig, AutoModel

from mmfast.encoders.hf import HuggingFace
from mmfast.encoders.hf_model import MaskedGroupNorm
from mmfast.plugins import create_encoder
from mmfast.testing import EncoderContract

# The kit takes seconds an encoder: one of each way through the code.
KIT = ["bert", "clip_text", "vit_tokens", "resnet", "wav2vec2_group_norm", "whisper_tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.mark.parametrize("family", KIT)
class TestContract(EncoderContract):
    name = "hf"

    @pytest.fixture(autouse=True)
    def _options(self, family, folder):
        self.options = hf_models.options(family, folder)


def make(family: str, folder, **changes) -> HuggingFace:
    return create_encoder("hf", **{**hf_models.options(family, folder), **changes}).eval()


def alone(encoder: HuggingFace, family: str, raw) -> torch.Tensor:
    """The features of one sample, from the published meaning of each pooling, without padding."""
    model, kind = encoder.model, encoder.spec.modality
    if kind == "text":
        ids = encoder.processor.tokenizer(raw)["input_ids"]
        result = model(input_ids=torch.tensor([ids]))
    elif kind == "image":
        pixels = encoder.processor.processor(images=raw, return_tensors="pt")["pixel_values"]
        result = model(pixel_values=pixels)
    else:
        inputs = encoder.processor.extractor(
            raw.samples.numpy(), sampling_rate=16000, return_tensors="pt"
        )
        result = model(**inputs)
    last = result.last_hidden_state
    if last.dim() == 4:
        last = last.flatten(2).transpose(1, 2)
    if family.startswith("whisper"):  # frames of 10 ms, of which the model makes half as many
        last = last[:, : -(-raw.samples.numel() // 160 // 2)]
    if family.endswith("_tokens"):
        return last[0]
    if hf_models.FAMILIES[family].get("pooling") == "pooler":
        return result.pooler_output.flatten()
    return {"cls": last[0, 0], "last": last[0, -1], "mean": last[0].mean(dim=0)}[
        hf_models.FAMILIES[family].get("pooling", "mean")
    ]


@pytest.mark.parametrize("family", hf_models.FAMILIES)
def test_features_are_those_of_transformers_on_each_sample_alone(family, folder):
    encoder = make(family, folder)
    raws = hf_models.raw_samples(encoder.spec.modality)
    samples = [encoder.preprocess(raw) for raw in raws]
    with torch.no_grad():
        values, mask = encoder(encoder.collate([None, *samples]))
        assert not mask[0].any()
        assert not values[0].any()
        for row, raw in enumerate(raws, 1):
            want = alone(encoder, family, raw)
            assert want.shape[-1] == encoder.spec.out_dim
            got = values[row] if mask.dim() == 1 else values[row][mask[row]]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", hf_models.FAMILIES)
def test_layer_groups_hold_every_parameter_once_layers_apart(family, folder):
    encoder = make(family, folder)
    groups = encoder.layer_groups()
    ids = [id(weight) for group in groups for weight in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(weight) for weight in encoder.parameters() if weight.requires_grad}
    assert 3 <= len(groups) <= 4  # two layers, what is before them, and after


@pytest.mark.parametrize("family", hf_models.FAMILIES)
def test_every_parameter_is_used(family, folder):
    encoder = make(family, folder).train()
    raws = hf_models.raw_samples(encoder.spec.modality)
    values = encoder(encoder.collate([encoder.preprocess(raw) for raw in raws])).values
    values.square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None or not weight.requires_grad, name


def test_what_is_not_used_is_no_parameter(folder):
    tower = make("clip_image_tokens", folder)
    assert tower.unused == ("post_layernorm.weight", "post_layernorm.bias")
    assert "model.post_layernorm.weight" in tower.state_dict()
    assert make("clip_image", folder).unused == ()
    assert make("wav2vec2_tokens", folder).unused == ("masked_spec_embed",)
    assert not [name for name, _ in make("bert", folder).named_parameters() if "pooler" in name]
    assert [name for name, _ in make("bert_pooler", folder).named_parameters() if "pooler" in name]


def test_a_folder_gives_its_weights_and_its_processor(tmp_path):
    config = AutoConfig.for_model("vit", **hf_models.PIXELS)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},'
        ' "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.25]}'
    )
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-4.0\n---\nlicense: mit\n")
    encoder = HuggingFace(str(tmp_path), pooling="cls").eval()
    assert encoder.spec.pretrained == str(tmp_path)
    assert encoder.spec.licence == "CC-BY-4.0"
    assert encoder.spec.mean == (0.1, 0.2, 0.3)
    pixels = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    image = encoder.preprocess(pixels)
    want = torch.tensor([0.9 / 0.5, 0.8 / 0.5, 0.7 / 0.25])
    torch.testing.assert_close(image, want[:, None, None].expand(3, 32, 32))
    with torch.no_grad():
        got = encoder(encoder.collate([image])).values
        want = model(pixel_values=image[None]).last_hidden_state[:, 0]
    torch.testing.assert_close(got, want)


def test_each_tower_of_a_whole_checkpoint(tmp_path):
    options = dict(hf_models.TOWERS)
    whole = AutoModel.from_config(AutoConfig.for_model(options.pop("model_type"), **options))
    whole.save_pretrained(tmp_path)
    hf_models.tokenizer(tmp_path)
    text = HuggingFace(str(tmp_path), modality="text")
    image = HuggingFace(str(tmp_path), modality="image", processor=hf_models.CLIP_IMAGES)
    for encoder, tower in ((text, whole.text_model), (image, whole.vision_model)):
        got, want = dict(encoder.model.state_dict()), tower.state_dict()
        assert set(got) == set(want)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_weights_of_half_precision_become_float32(tmp_path):
    config = AutoConfig.for_model("bert", **hf_models.TEXT)
    AutoModel.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    hf_models.tokenizer(tmp_path)
    encoder = HuggingFace(str(tmp_path))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


def test_texts_are_padded_at_the_end(folder):
    encoder = make("bert", folder)
    batch = encoder.collate([encoder.preprocess("the cat"), encoder.preprocess("a big red house")])
    assert batch["input_ids"][0].tolist() == [2, 5, 6, 3, 1, 1]  # [CLS] the cat [SEP], padding
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0]


def test_training_leaves_out_neither_layers_nor_frames(folder):
    config = {
        **hf_models.FAMILIES["wav2vec2_tokens"]["config"],
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0),
        "feat_proj_dropout": 0.0,
        "layerdrop": 1.0,
        "apply_spec_augment": True,
        "mask_time_prob": 0.9,
    }
    encoder = make("wav2vec2_tokens", folder, config=config)
    raws = hf_models.raw_samples("audio")
    batch = encoder.collate([encoder.preprocess(raw) for raw in raws])
    torch.testing.assert_close(encoder.train()(batch).values, encoder.eval()(batch).values)


def test_another_sample_stands_in_for_a_missing_one(folder):
    """Not a blank: in training, batch norm learns from it."""
    encoder = make("resnet", folder)
    image = encoder.preprocess(hf_models.raw_samples("image")[0])
    batch = encoder.collate([None, image])
    assert torch.equal(batch["pixel_values"], torch.stack([image, image]))


def test_recordings_are_resampled_and_cut(folder):
    encoder = make("wav2vec2_tokens", folder, max_length=800)
    noise = hf_models.raw_samples("audio")[2].samples
    slow = hf_models.Waveform(noise, 8000)  # 0.2 s: twice as many samples at 16 kHz
    assert encoder.preprocess(slow)["input_values"].shape == (800,)
    assert make("wav2vec2_tokens", folder).preprocess(slow)["input_values"].shape == (3200,)


def test_a_recording_shorter_than_the_convolutions_gives_one_frame(folder):
    encoder = make("wav2vec2_tokens", folder)
    blip = hf_models.Waveform(torch.ones(3), 16000)
    assert encoder(encoder.collate([encoder.preprocess(blip)])).values.shape == (1, 1, 16)


def test_texts_are_cut_at_what_the_model_takes(folder):
    long = "cat " * 100
    assert make("bert", folder).spec.max_length == 32
    assert make("bert", folder).preprocess(long).shape == (32,)
    assert make("roberta", folder).preprocess(long).shape == (30,)  # it counts from 2
    assert make("bert", folder, max_length=5).preprocess(long).shape == (5,)
    assert make("t5", folder).preprocess(long).shape == (102,)


def test_masked_group_norm():
    norm = MaskedGroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    plain = torch.nn.GroupNorm(4, 8)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(3, 8, 11)
    torch.testing.assert_close(norm(x), plain(x))
    norm.lengths = torch.tensor([11, 4, 7])
    got = norm(x)
    for row, length in enumerate(norm.lengths):
        want = plain(x[row : row + 1, :, :length])[0]
        torch.testing.assert_close(got[row, :, :length], want, rtol=1e-5, atol=1e-5)


def test_neither_torchvision_nor_torchaudio_is_needed():
    code = """
import sys
sys.modules["torchvision"] = sys.modules["torchaudio"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name.split(".")[0] in ("torchvision", "torchaudio") else real(name, *rest)
)
sys.path.insert(0, sys.argv[1])
import hf_models
from mmfast.encoders.hf import HuggingFace
for family in ("vit", "clip_image", "ast", "whisper"):
    encoder = HuggingFace(**hf_models.FAMILIES[family]).eval()
    raws = hf_models.raw_samples(encoder.spec.modality)
    print(encoder(encoder.collate([encoder.preprocess(raw) for raw in raws])).values.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, hf_models.__file__.rpartition("/")[0]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["torch.Size([3, 16])"] * 4
