"""Loads the models of Hugging Face transformers for :mod:`mmfast.encoders.hf`.

What differs from ``AutoModel.from_pretrained``: no code of a repository is run, no pickle is read
unless asked for, and weights that a checkpoint lacks are an error, not a warning beside random
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from transformers import AutoConfig, AutoModel
from transformers.utils import find_adapter_config_file, logging

TOWERS = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}
MODALITY_OF_INPUT = {
    "input_ids": "text",
    "pixel_values": "image",
    "input_values": "audio",
    "input_features": "audio",
}


def load_config(
    model: str | None, config: Mapping[str, Any] | None, modality: str | None, revision: str | None
) -> Any:
    """The configuration of the model, of one tower of it if it has several.

    Args: as those of :class:`mmfast.encoders.hf.HuggingFace`.
    """
    if (model is None) == (config is None):
        raise ValueError(
            "hf: give either model, a folder or a name on the hub, or config, a mapping with "
            f"'model_type', for random weights; got {'neither' if model is None else 'both'}"
        )
    if model is not None:
        whole = from_source(AutoConfig, model, "config.json", revision=revision)
    else:
        options = dict(config or {})
        kind = options.pop("model_type", None)
        if kind is None:
            raise ValueError("hf: config has no 'model_type', such as 'bert' or 'vit'")
        try:
            whole = AutoConfig.for_model(kind, **options)
        except ValueError as error:
            raise ValueError(f"hf: config: transformers knows no model_type {kind!r}") from error
    towers = {name: key for name, key in TOWERS.items() if hasattr(whole, key)}
    for part in (whole, *(getattr(whole, key) for key in towers.values())):
        kernel = getattr(part, "_attn_implementation", None)
        if "/" in str(kernel):  # transformers would fetch it from the hub
            raise ValueError(
                f"hf: attn_implementation is {kernel!r}, compiled code of a repository, which "
                "mmfast does not run; leave it out"
            )
    if not towers:
        return whole
    if modality not in towers:
        raise ValueError(
            f"hf: {whole.model_type} has several towers, so modality must say which one: "
            f"{' or '.join(map(repr, towers))}; got {modality!r}"
        )
    return getattr(whole, towers[modality])


def load_model(
    config: Any, model: str | None, revision: str | None, allow_pickle: bool
) -> tuple[nn.Module, set[str]]:
    """The model of a configuration, float32, in training mode.

    Returns:
        the model, its encoder alone if it has a decoder too, and the names of those of its weights
        that the checkpoint lacks and that are therefore random: none where there is no checkpoint.
    """
    # Layers left out at random are parameters without a gradient; SpecAugment draws from NumPy's
    # generator, whatever torch's seed, and fails for recordings shorter than its mask.
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    missing: set[str] = set()
    if model is None:
        network = AutoModel.from_config(config, dtype=torch.float32)
    else:
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # its report on missing weights: the caller looks at them
        try:
            network, report = from_source(
                AutoModel,
                model,
                "model.safetensors",
                config=config,
                revision=revision,
                use_safetensors=None if allow_pickle else True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(level)
        missing = set(report["missing_keys"])
    if getattr(config, "is_encoder_decoder", False):
        whole, network = network, network.get_encoder()
        names = {id(value): name for name, value in network.named_parameters()}
        missing = {
            names[id(value)]
            for name, value in whole.named_parameters()
            if name in missing and id(value) in names
        }
    return network.train(), _plain_weights(network, missing)


def _plain_weights(network: nn.Module, missing: set[str]) -> set[str]:
    """Merges weight norms into their weights; returns ``missing`` under the names there are then.

    Modules with parametrizations do not pickle, and workers of a DataLoader get the encoder so.
    """
    for name, module in list(network.named_modules()):
        if not is_parametrized(module):
            continue
        for leaf in list(module.parametrizations):
            remove_parametrizations(module, leaf)
            module._load_state_dict_pre_hooks.clear()  # weight_norm's, a local function
            prefix = f"{name}.parametrizations.{leaf}."
            if any(lost.startswith(prefix) for lost in missing):
                missing = missing | {f"{name}.{leaf}"}
    extractor: Any = getattr(network, "feature_extractor", None)
    if hasattr(extractor, "_requires_grad"):
        # For reentrant checkpointing it asks for gradients of its input, frozen or not.
        extractor._requires_grad = False
    return missing


def from_source(factory: Any, source: str, wanted: str, **options: Any) -> Any:
    """``factory.from_pretrained``, whose failures say what to do.

    Args:
        factory: an ``Auto`` class of transformers.
        source: a folder, or a name on the hub.
        wanted: the file it needs; for the message.
        **options: of ``from_pretrained``.
    """
    folder = Path(source).expanduser()
    looks_like_path = source.startswith((".", "~", "/")) or source.count("/") > 1
    if looks_like_path and not folder.is_dir():
        raise FileNotFoundError(f"hf: {source!r} is no folder here; it must hold {wanted}")
    local = folder.is_dir()
    try:
        adapted = find_adapter_config_file(
            str(folder) if local else source, revision=options.get("revision")
        )
        if adapted is not None:  # PEFT would load another model, and import modules that it names
            raise ValueError(
                f"hf: {source!r} is an adapter of another model (it has adapter_config.json): "
                "merge them by PEFT's merge_and_unload(), and give the folder with the result"
            )
        return factory.from_pretrained(
            str(folder) if local else source, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise ValueError(
                f"hf: {source!r} needs Python code of its own repository, which mmfast does not "
                "run; use a model whose architecture is part of transformers"
            ) from error
        if not isinstance(error, OSError):
            raise
        if not local:
            raise FileNotFoundError(
                f"hf: {source!r} is no folder here, and could not be had from the Hugging Face "
                "hub: there is no network, no such model, or HF_HUB_OFFLINE is set and it is not "
                "in the cache. Give the path of a folder with its files"
            ) from error
        if wanted == "model.safetensors":
            raise FileNotFoundError(
                f"hf: the folder {source!r} has no usable {wanted}. If its weights are a pickle "
                f"that you trust (pytorch_model.bin), say allow_pickle=True"
            ) from error
        raise FileNotFoundError(
            f"hf: the folder {source!r} has no {wanted} that transformers can read"
        ) from error


def licence(model: str | None) -> str:
    """What the model card in a folder says, "" if nothing; of random weights, the code's."""
    if model is None:
        return "Apache-2.0"
    card = Path(model).expanduser() / "README.md"
    if not card.is_file():
        return ""
    # The front matter alone; the card is prose below it.
    head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
    found = (
        re.search(r"^license:\s*['\"]?([\w.+-]+)", head.group(1), re.MULTILINE) if head else None
    )
    spdx = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-4.0": "CC-BY-4.0"}
    return spdx.get(found.group(1), found.group(1)) if found else ""


def layer_stack(model: nn.Module) -> str:
    """Name of the ``ModuleList`` of the layers: the largest of the outermost; "" without one."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.ModuleList and len(module)
    }
    outer = [name for name in lists if not any(name.startswith(f"{above}.") for above in lists)]
    return max(outer, default="", key=lambda name: sum(p.numel() for p in lists[name].parameters()))


def stack_groups(model: nn.Module, stack: str) -> list[list[str]]:
    """Names of what comes before the layers, of each layer, of what comes after, in model order.

    Fixed parameters, such as the sinusoids of Whisper, are left out.
    """
    before: list[str] = []
    layers: dict[str, list[str]] = {}
    after: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if stack and name.startswith(f"{stack}."):
            number = name[len(stack) + 1 :].split(".")[0]
            layers.setdefault(number, []).append(name)
        else:
            (after if layers else before).append(name)
    return [group for group in (before, *layers.values(), after) if group]


class MaskedGroupNorm(nn.GroupNorm):
    """A group norm over time whose statistics leave padding out.

    Wav2Vec2 and HuBERT of the base size normalise each channel over the whole recording, so that a
    recording's features would depend on how long the others of its batch are. The parameters are
    those of ``nn.GroupNorm``; set ``lengths``, int64 (B,), before each call.
    """

    lengths: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, T), of which row b is valid up to ``lengths[b]``."""
        if self.lengths is None:
            return super().forward(input)
        times = torch.arange(input.shape[-1], device=input.device)
        inside = times < self.lengths[:, None, None, None]
        groups = input.float().unflatten(1, (self.num_groups, -1))
        count = inside.sum(dim=(2, 3), keepdim=True) * groups.shape[2]
        mean = groups.masked_fill(~inside, 0).sum(dim=(2, 3), keepdim=True) / count
        centred = (groups - mean).masked_fill(~inside, 0)
        variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return (normed * self.weight[:, None] + self.bias[:, None]).to(input.dtype)


def mask_group_norms(model: nn.Module) -> list[MaskedGroupNorm]:
    """Replaces the group norms of a waveform model's feature extractor; returns the new ones."""
    found = []
    for parent in list(getattr(model, "feature_extractor", nn.Identity()).modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GroupNorm:
                masked = MaskedGroupNorm(child.num_groups, child.num_channels, child.eps)
                masked.load_state_dict(child.state_dict())
                setattr(parent, name, masked)
                found.append(masked)
    return found
