"""Any image backbone of timm as an mmfast encoder; images are prepared without torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmfast.encoders.common import one_of, rgb, size_2d, stack, valid
from mmfast.encoders.unused import reached, unused_to_buffers
from mmfast.plugins.contract import Batch, EncoderSpec, Features
from mmfast.plugins.weights import weights_follow

try:
    import timm
except ModuleNotFoundError as error:
    root = (error.name or "").partition(".")[0]
    if root != "timm":
        raise ImportError(
            f"the encoder 'timm' needs {root}, which timm imports: install it, torchvision "
            f"from the same package index as torch"
        ) from error
    raise ImportError("the encoder 'timm' needs timm: pip install 'mmfast[timm]'") from error
except RuntimeError as error:
    if "torchvision" not in str(error):
        raise
    raise ImportError(
        f"the encoder 'timm' needs a torchvision built for this torch, {torch.__version__}; the "
        f"one installed does not load ({error}). Install it from the same package index as torch; "
        f"for the CPU build: pip install --force-reinstall --no-deps torchvision --index-url "
        "https://download.pytorch.org/whl/cpu"
    ) from error

from PIL import Image
from timm.data import resolve_data_config
from timm.models import group_parameters, load_checkpoint

RESERVED = {"checkpoint_path", "features_only", "in_chans", "num_classes", "pretrained"}
INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)


class Timm(nn.Module):
    """A backbone of timm without its classifier.

    Args:
        model: a name that ``timm.list_models()`` knows, such as ``resnet50`` or ``vgg16``, with
            the tag of its weights where ``pretrained`` shall load others than the default ones.
        pretrained: load timm's weights, from the Hugging Face hub or its cache.
        checkpoint: instead, a file of weights for this model, in safetensors.
        output: ``pooled`` or ``tokens``: what the layers before pooling give, class tokens
            included; of a feature map, its places row by row.
        global_pool: how ``pooled`` comes about, ``avg``, ``max``, ``token`` and others that the
            model knows; by default the model's own way.
        image_size: height and width in pixels, or one int for both; by default those the weights
            were made with.
        model_options: further arguments of ``timm.create_model``, such as ``drop_path_rate``.
        allow_pickle: also load a ``checkpoint`` that is a pickle, tensors only.

    Attributes:
        unused: names of parameters that the output does not depend on and that are kept as
            buffers. Whole modules behind the features, unused for ``tokens``, are left out.

    Images are resized, cropped and normalised as timm's configuration of the weights says (
    ``timm.data.resolve_data_config``), the numbers equal to those of timm's own evaluation
    transform.

    Shape:
        - batch: ``image`` float32 (B, 3, H, W); ``present`` bool (B,). Where an image is missing
          stands another one, whose features are thrown away.
        - output: pooled (B, D) or tokens (B, T, D).

    Raises:
        FileNotFoundError: no such checkpoint, or the weights cannot be had from the hub.
        ValueError: an unknown model, an option out of range or at odds with another, a checkpoint
            that does not fit.

    Example:
        >>> encoder = mmfast.create_encoder("timm", model="resnet18", checkpoint="r18.safetensors")
        >>> encoder.spec.out_dim
        512
    """

    model: Any

    def __init__(
        self,
        model: str = "resnet50",
        *,
        pretrained: bool = False,
        checkpoint: str | None = None,
        output: Literal["pooled", "tokens"] = "pooled",
        global_pool: str | None = None,
        image_size: int | Sequence[int] | None = None,
        model_options: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__()
        one_of("output", output, ("pooled", "tokens"))
        if pretrained and checkpoint is not None:
            raise ValueError("timm: give either pretrained or checkpoint, not both")
        options = dict(model_options or {})
        if taken := RESERVED & set(options):
            raise ValueError(
                f"timm: model_options has {', '.join(sorted(taken))}, which this encoder decides"
            )
        if output == "pooled" and global_pool is not None:
            options["global_pool"] = global_pool
        elif global_pool is not None:
            raise ValueError("timm: global_pool is for output='pooled'; leave it out")
        size = None if image_size is None else size_2d("image_size", image_size)
        known = timm.get_pretrained_cfg(model, allow_unregistered=True)
        if size is not None and known is not None and known.fixed_input_size:
            options["img_size"] = size
        fetch = not weights_follow()
        self.model = _create(model, pretrained and fetch, options)
        if checkpoint is not None and fetch:
            _load(self.model, checkpoint, allow_pickle)

        self.data = resolve_data_config(
            {} if size is None else {"input_size": (3, *size)}, model=self.model
        )
        one_of(f"timm: crop_mode of {model}", self.data["crop_mode"], ("center", "squash"))
        one_of(f"timm: interpolation of {model}", self.data["interpolation"], INTERPOLATIONS)
        size = tuple(self.data["input_size"][1:])
        self.output = output
        out_dim, self.unused = self._probe(size)
        self._groups = _groups(self.model)
        tag = self.model.pretrained_cfg.get("tag") or ""
        self.spec = EncoderSpec(
            api_version=1,
            modality="image",
            out_dim=out_dim,
            output=output,
            image_size=size,
            mean=self.data["mean"],
            std=self.data["std"],
            pretrained=(tag or model) if pretrained else checkpoint,
            origin=f"timm {timm.__version__}, {model}",
            licence=_licence(self.model, pretrained, checkpoint),
        )

    def preprocess(self, raw: Any) -> Tensor:
        """A PIL image or a uint8 tensor (3, H, W) to float32 (3, \\*image_size)."""
        return prepare(raw, self.data)

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """B preprocessed images, None where one is missing, to ``image`` and ``present``."""
        images, present = stack(samples, self.data["input_size"])
        return {"image": images, "present": present}

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes a batch; see the class for its shapes."""
        if self.output == "pooled":
            return valid(self.model(batch["image"]), batch["present"])
        values = self.model.forward_features(batch["image"])
        if values.dim() == 4:  # a feature map, of Swin and some others (B, H, W, D)
            if getattr(self.model, "output_fmt", "NCHW") != "NHWC":
                values = values.permute(0, 2, 3, 1)
            values = values.flatten(1, 2)
        return valid(values, batch["present"][:, None].expand(values.shape[:2]))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The stem, each stage or block, what follows them: timm's coarse groups of the model."""
        return [[self.model.get_parameter(name) for name in group] for group in self._groups]

    def _probe(self, size: tuple[int, ...]) -> tuple[int, tuple[str, ...]]:
        """Runs the model once: the features of its result, the parameters it leaves unused."""
        called: set[str] = set()
        hooks = [
            child.register_forward_hook(lambda *_, name=name: called.add(name))
            for name, child in self.model.named_children()
        ]
        training = self.training
        self.eval()
        batch = {"image": torch.zeros(1, 3, *size), "present": torch.ones(1, dtype=torch.bool)}
        with torch.enable_grad():
            values = self(batch).values
        for hook in hooks:
            hook.remove()
        used = reached(values)
        for name, child in self.model.named_children():
            weights = list(child.parameters())
            if weights and name not in called and not any(id(weight) in used for weight in weights):
                setattr(self.model, name, nn.Identity())
        unused = unused_to_buffers(self.model, values)
        self.train(training)
        return values.shape[-1], unused


def prepare(raw: Any, data: Mapping[str, Any]) -> Tensor:
    """An image as timm's evaluation transform prepares it.

    Args:
        raw: a PIL image, or a uint8 tensor (3, H, W), RGB in 0..255.
        data: ``input_size`` (3, H, W), ``interpolation``, ``crop_pct``, ``crop_mode`` (``center``:
            the shorter side is resized; ``squash``: both are), ``mean`` and ``std``.

    Returns:
        float32 (3, H, W).
    """
    image = Image.fromarray(rgb(raw).permute(1, 2, 0).contiguous().numpy())
    height, width = data["input_size"][1:]
    rows, columns = (math.floor(side / data["crop_pct"]) for side in (height, width))
    if data["crop_mode"] == "center":
        scale = max(rows / image.height, columns / image.width)
        # The longer side is rounded down, as torchvision does it.
        rows = rows if scale == rows / image.height else int(columns * image.height / image.width)
        columns = (
            columns if scale == columns / image.width else int(rows * image.width / image.height)
        )
    image = image.resize((columns, rows), Image.Resampling[data["interpolation"].upper()])
    left, top = round((columns - width) / 2), round((rows - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = rgb(image).float() / 255
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    return (pixels - mean) / std


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f"timm: there is no model {name!r}; timm.list_models() has all"
            + (f", nearest are {', '.join(near)}" if near else "")
        ) from error
    except OSError as error:  # of huggingface_hub
        raise FileNotFoundError(
            f"timm: the weights of {name!r} could not be had from the Hugging Face hub: there is "
            f"no network, no such file, or HF_HUB_OFFLINE is set and they are not in the cache. "
            f"Give a file of weights as checkpoint"
        ) from error


def _load(model: Any, checkpoint: str, allow_pickle: bool) -> None:
    """Loads all weights of ``model``; the file may hold those of its classifier besides."""
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"timm: checkpoint is {checkpoint!r}; there is no such file")
    if path.suffix != ".safetensors" and not allow_pickle:
        raise ValueError(
            f"timm: checkpoint is {checkpoint!r}; it must be a .safetensors file. If it is a "
            f"pickle that you trust, say allow_pickle=True"
        )
    report = load_checkpoint(model, str(path), strict=False, weights_only=True)
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    surplus = [
        name
        for name in report.unexpected_keys
        if not any(name.startswith(f"{head}.") for head in heads)
    ]
    if report.missing_keys or surplus:
        raise ValueError(
            f"timm: checkpoint {checkpoint!r} does not fit the model: it lacks "
            f"{report.missing_keys[:3]} ({len(report.missing_keys)} weights) and has "
            f"{surplus[:3]} ({len(surplus)}) that the model has not"
        )


def _groups(model: Any) -> list[list[str]]:
    """The names of the parameters of each layer group, fixed ones left out."""
    found = sorted(group_parameters(model, model.group_matcher(coarse=True)).items())
    groups = [
        [name for name in names if model.get_parameter(name).requires_grad] for _, names in found
    ]
    return [group for group in groups if group]


def _licence(model: Any, pretrained: bool, checkpoint: str | None) -> str:
    if checkpoint is not None:
        return ""
    found = str((pretrained and model.pretrained_cfg.get("license")) or "apache-2.0")
    return {"apache-2.0": "Apache-2.0", "mit": "MIT"}.get(found, found)
