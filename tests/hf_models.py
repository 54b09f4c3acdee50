"""Small models of transformers: options of the encoder `hf`, and a tokenizer on disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmfast.plugins import Waveform

WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "mat", "red", "big", "house", "and"]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = {**SIZES, "vocab_size": 20, "max_position_embeddings": 32}
PIXELS = {**SIZES, "image_size": 32, "patch_size": 8}
SAMPLES = {
    **SIZES,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_length": 2,
}
TOWERS = {
    "model_type": "clip",
    "text_config": {**TEXT, "bos_token_id": 2, "eos_token_id": 3},
    "vision_config": PIXELS,
}
CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}
# The options of every family that the encoder names; "TOKENIZER" stands for tokenizer()'s folder.
FAMILIES = {
    "bert": {"config": {"model_type": "bert", **TEXT}, "processor": "TOKENIZER"},
    "bert_cls": {
        "config": {"model_type": "bert", **TEXT},
        "processor": "TOKENIZER",
        "pooling": "cls",
    },
    "bert_pooler": {
        "config": {"model_type": "bert", **TEXT},
        "processor": "TOKENIZER",
        "pooling": "pooler",
    },
    "bert_tokens": {
        "config": {"model_type": "bert", **TEXT},
        "processor": "TOKENIZER",
        "output": "tokens",
    },
    "roberta": {
        "config": {"model_type": "roberta", **TEXT, "pad_token_id": 1},
        "processor": "TOKENIZER",
    },
    "gpt2_last": {
        "config": {
            "model_type": "gpt2",
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 32,
            "vocab_size": 20,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        "processor": "TOKENIZER",
        "pooling": "last",
    },
    "t5": {
        "config": {
            "model_type": "t5",
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 20,
        },
        "processor": "TOKENIZER",
    },
    "clip_text": {
        "config": TOWERS,
        "modality": "text",
        "processor": "TOKENIZER",
        "pooling": "pooler",
    },
    "vit": {"config": {"model_type": "vit", **PIXELS}},
    "vit_tokens": {"config": {"model_type": "vit", **PIXELS}, "output": "tokens"},
    "resnet": {
        "config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "processor": {"size": {"shortest_edge": 32}, "crop_pct": 1.0},
    },
    "resnet_pooler": {
        "config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "processor": {"size": {"shortest_edge": 32}, "crop_pct": 1.0},
        "pooling": "pooler",
    },
    "dinov2_cls": {
        "config": {"model_type": "dinov2", **PIXELS},
        "pooling": "cls",
        "processor": {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
        },
    },
    "clip_image": {
        "config": TOWERS,
        "modality": "image",
        "pooling": "pooler",
        "processor": CLIP_IMAGES,
    },
    "clip_image_tokens": {
        "config": TOWERS,
        "modality": "image",
        "output": "tokens",
        "processor": CLIP_IMAGES,
    },
    "wav2vec2_group_norm": {"config": {"model_type": "wav2vec2", **SAMPLES}},
    "wav2vec2_layer_norm": {
        "config": {
            "model_type": "wav2vec2",
            **SAMPLES,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        }
    },
    "wav2vec2_tokens": {
        "config": {"model_type": "wav2vec2", **SAMPLES},
        "output": "tokens",
    },
    "hubert": {"config": {"model_type": "hubert", **SAMPLES}},
    "ast": {
        "config": {
            "model_type": "audio-spectrogram-transformer",
            **SIZES,
            "max_length": 64,
            "num_mel_bins": 16,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        "processor": {"max_length": 64, "num_mel_bins": 16},
        "pooling": "pooler",
    },
    "whisper": {
        "config": {
            "model_type": "whisper",
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "vocab_size": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "processor": {"feature_size": 16, "chunk_length": 1},
    },
    "whisper_tokens": {},
}
FAMILIES["whisper_tokens"] = {**FAMILIES["whisper"], "output": "tokens"}


def tokenizer(folder: Path) -> str:
    """Writes a tokenizer of WORDS, [CLS] and [SEP] around each text, into ``folder``."""
    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    vocabulary = {word: row for row, word in enumerate(specials + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return str(folder)


def options(family: str, folder: Path) -> dict:
    """The options of a family, its tokenizer in ``folder``."""
    found = dict(FAMILIES[family])
    if found.get("processor") == "TOKENIZER":
        found["processor"] = tokenizer(folder)
    return found


def raw_samples(modality: str) -> list:
    """Three raw samples of different lengths or sizes."""
    generator = torch.Generator().manual_seed(1)
    if modality == "text":
        return ["the red cat", "a big dog ran and sat on the mat", "house"]
    if modality == "image":
        sizes = [(40, 50), (32, 32), (64, 36)]
        return [
            torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
        ]
    lengths = [900, 400, 1600]
    return [Waveform(0.1 * torch.randn(n, generator=generator), 16000) for n in lengths]
