"""Any encoder of Hugging Face transformers, for text, images or audio, as an mmfast encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmfast.encoders.common import masked_mean, one_of, valid, whole
from mmfast.plugins.contract import Batch, EncoderSpec, Features

try:
    from transformers import AutoImageProcessor  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the encoder 'hf' needs transformers, which could not be imported ({error}): "
        "pip install 'mmfast[hf]'. If there is a torchvision, it must be one built for this torch, "
        f"{torch.__version__}, from the same package index; or uninstall it, it is not needed"
    ) from error

from mmfast.encoders.hf_model import (
    MODALITY_OF_INPUT,
    TOWERS,
    layer_stack,
    licence,
    load_config,
    load_model,
    mask_group_norms,
    stack_groups,
)
from mmfast.encoders.hf_processor import AudioProcessor, ImageProcessor, TextProcessor
from mmfast.encoders.unused import unused_to_buffers

POOLINGS = ("mean", "cls", "last", "pooler")


class HuggingFace(nn.Module):
    """An ``AutoModel`` of transformers with its own tokenizer or processor.

    Text models (BERT and its kin, the encoder of T5, decoders such as GPT-2), image models (ViT,
    ResNet, Swin, DINOv2), audio models (Wav2Vec2, HuBERT, AST, the encoder of Whisper), and one
    tower of models that have several (CLIP, SigLIP). Weights are read as float32, from
    safetensors. No code of a model's repository is run. Nothing needs torchvision or torchaudio.

    Args:
        model: a folder, as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        config: instead of ``model``: a mapping with ``model_type`` and the fields of that model's
            configuration; the weights are random.
        processor: folder or name on the hub of the tokenizer or processor, by default ``model``;
            for images and audio also a mapping of its options, by default those of its class,
            sized for the model.
        modality: ``text``, ``image`` or ``audio``; needed where a model has several towers.
        output: ``pooled`` or ``tokens``: every vector of the last layer, class tokens included;
            of a feature map, its places row by row.
        pooling: how ``pooled`` comes about: ``mean``, the default, over the valid vectors of the
            last layer; ``cls``, the first; ``last``, the last valid one, for decoders; ``pooler``,
            the model's own ``pooler_output``.
        max_length: most tokens of a text (by default as many as the model takes), or most
            samples, at the model's rate, of a recording (by default all).
        revision: branch, tag or commit on the hub.
        allow_pickle: also load weights that are a pickle (``pytorch_model.bin``).

    Attributes:
        unused: names of the model's parameters that the output does not depend on, such as a mask
            token; they are kept as buffers.

    Shape:
        - batch: text: ``input_ids``, ``attention_mask`` int64 (B, L); image: ``pixel_values``
          (B, 3, H, W); audio: ``input_values`` (B, T) or the extractor's spectrograms, with
          ``attention_mask`` where it gives one; always ``present`` bool (B,).
        - output: pooled (B, D) or tokens (B, T, D).

    The features of a sample do not depend on what else is in the batch: group norms over time,
    those of Wav2Vec2 and HuBERT of the base size, leave padding out. In training, layers are not
    left out at random (LayerDrop) and spectrograms are not masked (SpecAugment), whatever the
    configuration says. The weight norm of their positional convolution is merged into its weight.

    Raises:
        FileNotFoundError: no such folder, a file missing in it, or the hub is out of reach.
        ValueError: an option out of range or at odds with another; a model that cannot be run in
            this way; weights that the model uses but the checkpoint lacks.

    Example:
        >>> encoder = mmfast.create_encoder("hf", model="models/bert-base-uncased", max_length=64)
        >>> encoder.spec.modality, encoder.spec.out_dim
        ('text', 768)
    """

    model: Any

    def __init__(
        self,
        model: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        processor: str | Mapping[str, Any] | None = None,
        modality: str | None = None,
        output: Literal["pooled", "tokens"] = "pooled",
        pooling: str | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__()
        one_of("output", output, ("pooled", "tokens"))
        if modality is not None:
            one_of("modality", modality, tuple(TOWERS))
        if pooling is not None:
            one_of("pooling", pooling, POOLINGS)
            if output == "tokens":
                raise ValueError("hf: pooling says how output='pooled' comes about; leave it out")
        if max_length is not None:
            whole("max_length", max_length)
        settings = load_config(model, config, modality, revision)
        self.model, missing = load_model(settings, model, revision, allow_pickle)
        self.pooling = None if output == "tokens" else pooling or "mean"
        pooler = getattr(self.model, "pooler", None)
        if self.pooling != "pooler" and isinstance(pooler, nn.Module):
            self.model.pooler = nn.Identity()  # called all the same by some models, so not None
        self._norms = mask_group_norms(self.model)

        found: Any = MODALITY_OF_INPUT.get(self.model.main_input_name)
        if modality not in (None, found) or found is None:
            raise ValueError(
                f"hf: {type(self.model).__name__} takes {self.model.main_input_name}, which is "
                f"{found or 'neither text, images nor audio'}"
                + ("" if modality is None else f"; modality is {modality!r}")
            )
        self.processor = self._make_processor(
            found, model if processor is None else processor, revision, max_length
        )
        stack = layer_stack(self.model)
        out_dim, self.unused = self._probe(found, missing, stack)
        self._groups = stack_groups(self.model, stack)
        self.spec = EncoderSpec(
            api_version=1,
            modality=found,
            out_dim=out_dim,
            output=output,
            pretrained=model,
            origin=f"Hugging Face transformers, {settings.model_type}"
            + ("" if model is None else f", {model}"),
            licence=licence(model),
            **self.processor.facts,
        )

    def preprocess(self, raw: Any) -> Any:
        """One raw sample to what :meth:`collate` takes; see the processor's own options."""
        return self.processor.preprocess(raw)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """B preprocessed samples, None where one is missing, to a batch."""
        return self.processor.collate(samples)

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Encodes a batch; see the class for its shapes."""
        inputs = {name: value for name, value in batch.items() if name != "present"}
        if self._norms:  # each stands behind the first convolution
            first = self.model.feature_extractor.conv_layers[0].conv
            samples = inputs["attention_mask"].sum(dim=1)
            for norm in self._norms:
                norm.lengths = (samples - first.kernel_size[0]) // first.stride[0] + 1
        result = self.model(**inputs)
        for norm in self._norms:
            norm.lengths = None
        values = result.last_hidden_state
        if values.dim() == 4:  # a feature map (B, D, H, W)
            values = values.flatten(2).transpose(1, 2)
        mask = self._token_mask(values, inputs.get("attention_mask")) & batch["present"][:, None]
        if self.pooling is None:
            return valid(values, mask)
        if self.pooling == "mean":
            pooled = masked_mean(values, mask)
        elif self.pooling == "cls":
            pooled = values[:, 0]
        elif self.pooling == "last":
            last = mask.sum(dim=1).clamp(min=1) - 1
            pooled = values[torch.arange(len(values), device=values.device), last]
        else:
            pooled = result.pooler_output.flatten(1)  # (B, D, 1, 1) of convolutional models
        return valid(pooled, batch["present"])

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """What comes before the layers of the model, each layer, what comes after them."""
        return [[self.model.get_parameter(name) for name in group] for group in self._groups]

    def _make_processor(
        self, modality: str, source: Any, revision: str | None, max_length: int | None
    ) -> TextProcessor | ImageProcessor | AudioProcessor:
        config = self.model.config
        if modality == "text":
            if not isinstance(source, str):
                raise ValueError(
                    "hf: a text model made from config needs processor, the folder or name on the "
                    f"hub of its tokenizer; got {source!r}"
                )
            return TextProcessor(source, revision, max_length, _positions(self.model))
        if modality == "audio":
            return AudioProcessor({} if source is None else source, revision, config, max_length)
        if max_length is not None:
            raise ValueError("hf: max_length is for text and audio; images have none")
        if source is None:
            side = getattr(config, "image_size", None)
            height, width = side if isinstance(side, (list, tuple)) else (side, side)
            size = {"height": height, "width": width}
            source = {} if side is None else {"size": size, "crop_size": size}
        return ImageProcessor(source, revision, config)

    def _token_mask(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Which of (B, T, D) are valid, from a mask over the inputs; bool (B, T)."""
        length = values.shape[1]
        if mask is None:
            return values.new_ones(values.shape[:2], dtype=torch.bool)
        if mask.shape[1] == length:
            return mask.bool()
        if hasattr(self.model, "_get_feature_vector_attention_mask"):  # from samples to frames
            return self.model._get_feature_vector_attention_mask(length, mask).bool()
        stride = mask.shape[1] // length  # Whisper's second convolution
        return mask[:, ::stride][:, :length].bool()

    def _probe(self, modality: str, missing: set[str], stack: str) -> tuple[int, tuple[str, ...]]:
        """Runs the model once: the features of its result, the parameters it leaves unused."""
        batch = self.collate([None])
        batch["present"] = torch.ones(1, dtype=torch.bool)
        training = self.training
        self.eval()
        with torch.enable_grad():
            try:
                values = self(batch).values
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                shapes = {name: tuple(value.shape) for name, value in batch.items()}
                raise ValueError(
                    f"hf: {type(self.model).__name__} cannot be run as an encoder of {modality} "
                    f"with pooling {self.pooling!r} on {shapes}: {error}. If the shapes are wrong, "
                    f"give the processor that belongs to the model"
                ) from error
            # Those of the layers stay: experts, say, that one sample does not reach.
            unused = unused_to_buffers(
                self.model, values, keep=lambda name: name.startswith(f"{stack}.")
            )
        self.train(training)
        lacking = sorted(missing & {name for name, _ in self.model.named_parameters()})
        if lacking:
            raise ValueError(
                f"hf: the checkpoint lacks {len(lacking)} weights that {type(self.model).__name__} "
                f"uses, such as {', '.join(lacking[:3])}: they would be random numbers"
            )
        return values.shape[-1], unused


def _positions(model: nn.Module) -> int | None:
    """Most tokens a text model takes, None if its configuration sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return limit - module.padding_idx - 1  # RoBERTa and its kin count on from there
    return limit
