"""The encoder `timm`: backbones through the kit, against timm itself."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import yaml
from PIL import Image
from pipeline import settings
from safetensors.torch import save_file
from timm.data import create_transform

from mmfast.encoders.timm import Timm
from mmfast.plugins import create_encoder
from mmfast.testing import EncoderContract
from mmfast.train.config import load_config
from mmfast.train.run import Run, fit

SMALL = {
    "convnet": {"model": "resnet10t", "image_size": 64},
    "vit_tokens": {
        "model": "test_vit",
        "output": "tokens",
        "model_options": {"drop_path_rate": 0.1},
    },
}


@pytest.mark.parametrize("which", SMALL)
class TestContract(EncoderContract):
    name = "timm"

    @pytest.fixture(autouse=True)
    def _options(self, which):
        self.options = SMALL[which]


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(301, 457), (457, 301), (90, 120), (224, 224)]
    return [
        torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]


def pil(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


# Every shape of features that timm has: maps, maps with features last (Swin), tokens, tokens and a
# class token, a hidden layer in the head (VGG16, MobileNetV3), parts without parameters (EVA).
@pytest.mark.parametrize(
    ("model", "out_dim", "tokens"),
    [
        ("vgg16", 4096, (49, 512)),
        ("resnet18", 512, (49, 512)),
        ("resnet50", 2048, (49, 2048)),
        ("mobilenetv3_small_050", 1024, (49, 288)),
        ("convnext_atto", 320, (49, 320)),
        ("swin_tiny_patch4_window7_224", 768, (49, 768)),
        ("vit_tiny_patch16_224", 192, (197, 192)),
        ("mixer_s32_224", 512, (49, 512)),
        ("eva02_tiny_patch14_224", 192, (257, 192)),
    ],
)
def test_backbones(model, out_dim, tokens):
    torch.manual_seed(0)
    plain = timm.create_model(model, num_classes=0).eval()
    raw = images()[0]
    for output in ("pooled", "tokens"):
        encoder = create_encoder("timm", model=model, output=output).eval()
        encoder.model.load_state_dict(plain.state_dict(), strict=output == "pooled")
        transform = create_transform(**encoder.data)
        assert torch.equal(encoder.preprocess(raw), transform(pil(raw)))
        with torch.no_grad():
            pixels = transform(pil(raw))[None]
            values, mask = encoder(encoder.collate([None, encoder.preprocess(raw)]))
            if output == "pooled":
                want = plain(pixels)
                assert encoder.spec.out_dim == out_dim
            else:
                want = plain.forward_features(pixels)
                if want.dim() == 4 and want.shape[-1] != tokens[1]:
                    want = want.permute(0, 2, 3, 1)
                want = want.reshape(1, *tokens)
                assert encoder.spec.out_dim == tokens[1]
        assert not mask[0].any()
        assert not values[0].any()
        torch.testing.assert_close(values[1:], want)
        check_groups(encoder)


def check_groups(encoder: Timm) -> None:
    groups = encoder.layer_groups()
    ids = [id(weight) for group in groups for weight in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(weight) for weight in encoder.parameters()}
    assert len(groups) >= 4
    first = next(encoder.model.parameters())
    assert any(weight is first for weight in groups[0])


def test_what_tokens_do_not_need_is_gone():
    tokens = Timm("vgg16", output="tokens")
    assert sum(weight.numel() for weight in tokens.state_dict().values()) == 14_714_688


@pytest.mark.parametrize("model", ["resnet10t", "test_vit"])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_images_are_prepared_as_timm_does(model, mode):
    encoder = Timm(model)
    for crop in (0.875, 1.0):
        for interpolation in ("bilinear", "bicubic"):
            encoder.data |= {"crop_mode": mode, "crop_pct": crop, "interpolation": interpolation}
            transform = create_transform(**encoder.data)
            for raw in images():
                assert torch.equal(encoder.preprocess(raw), transform(pil(raw)))


def test_image_size_and_pooling():
    convnet = Timm("resnet10t", image_size=(96, 64), global_pool="max")
    assert convnet.spec.image_size == (96, 64)
    assert convnet.model.global_pool.pool_type == "max"
    vit = Timm("vit_tiny_patch16_224", image_size=32, output="tokens")
    sample = vit.preprocess(images()[0])
    assert sample.shape == (3, 32, 32)
    assert vit(vit.collate([sample])).values.shape == (1, 5, 192)


def test_a_checkpoint_with_its_classifier(tmp_path):
    whole = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / "weights.safetensors"
    save_file(whole.state_dict(), path)
    encoder = Timm("resnet10t", checkpoint=str(path)).eval()
    assert encoder.spec.pretrained == str(path)
    assert encoder.spec.licence == ""
    image = encoder.preprocess(images()[0])
    with torch.no_grad():
        got = encoder(encoder.collate([image])).values
        want = whole.forward_head(whole.forward_features(image[None]), pre_logits=True)
    torch.testing.assert_close(got, want)


def test_a_checkpoint_that_does_not_fit(tmp_path):
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in weights.items() if name != "conv1.0.weight"}, path)
    with pytest.raises(ValueError, match=r"does not fit.*lacks \['conv1.0.weight'\] \(1 weights\)"):
        Timm("resnet10t", checkpoint=str(path))
    save_file({**weights, "neck.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"has \['neck.weight'\] \(1\) that the model has not"):
        Timm("resnet10t", checkpoint=str(path))


def test_a_pickle_is_read_only_when_asked_for(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), path)
    with pytest.raises(ValueError, match=r"must be a \.safetensors file.*allow_pickle=True"):
        Timm("resnet10t", checkpoint=str(path))
    Timm("resnet10t", checkpoint=str(path), allow_pickle=True)


@pytest.mark.parametrize("source", ["pretrained", "checkpoint"])
def test_a_run_is_loaded_without_the_source_of_its_weights(tmp_path, monkeypatch, source):
    """Frozen, so that the weights of the source are those of the run; the checkpoint has them."""
    weights = tmp_path / "weights.safetensors"
    model = timm.create_model("resnet10t", num_classes=0)
    save_file(model.state_dict(), weights)

    def fetched(found, **options):
        found.load_state_dict(model.state_dict())

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetched)
    with (tmp_path / "table.jsonl").open("w") as table:
        for row in range(20):
            pil(torch.randint(256, (3, 32, 32), dtype=torch.uint8)).save(tmp_path / f"{row}.png")
            table.write(json.dumps({"image": f"{row}.png", "label": "ab"[row % 2]}) + "\n")
    chosen = {source: True if source == "pretrained" else str(weights)}
    options = {"model": "resnet10t", "image_size": 32, **chosen}
    raw = settings(tmp_path)
    column = {"column": "image", "modality": "image", "root": str(tmp_path)}
    raw["data"]["columns"] = {"image": column}
    raw["model"]["encoders"] = {"image": {"name": "timm", "options": options, "freeze": "all"}}
    raw["train"]["epochs"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    expected = fit(load_config(tmp_path / "config.yaml", [])).evaluate()

    def out_of_reach(*_, **options):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", out_of_reach)
    weights.unlink()
    run = Run.load(tmp_path / "run")
    encoder = run.model.get_submodule("encoders.image")
    for name, value in model.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], value), name
    assert run.evaluate() == expected
    assert encoder.spec.pretrained is not None, "where the weights are from is still told"
    with pytest.raises(FileNotFoundError):
        create_encoder("timm", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "resnet19"}, ValueError, "no model 'resnet19'.*nearest are.*resnet18"),
        ({"output": "both"}, ValueError, "output is 'both'"),
        ({"output": "tokens", "global_pool": "max"}, ValueError, "global_pool is for"),
        ({"pretrained": True, "checkpoint": "x"}, ValueError, "not both"),
        ({"checkpoint": "nowhere.safetensors"}, FileNotFoundError, "no such file"),
        ({"model": "resnet10t", "pretrained": True}, FileNotFoundError, "Hugging Face hub"),
        ({"image_size": 0}, ValueError, "image_size is 0"),
        ({"model_options": {"in_chans": 1}}, ValueError, "in_chans, which this encoder decides"),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        Timm(**{"model": "resnet10t", **options})


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("sys.modules['timm'] = None", "pip install 'mmfast[timm]'"),
        ("sys.modules['torchvision'] = None", "needs torchvision, which timm imports"),
        (
            "sys.path.insert(0, 'broken')",
            "needs a torchvision built for this torch",
        ),
    ],
)
def test_what_is_missing_is_named(setup, message, tmp_path):
    package = tmp_path / "broken" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {setup}; import mmfast.encoders.timm"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
