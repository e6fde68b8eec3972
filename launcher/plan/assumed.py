"""What ``thawline plan`` takes for granted where the hub cannot be asked: sizes of common models, numbers of rows.

Owns the table of configurations and the words in which an assumption is told; nothing is assumed silently, and nothing
at all for a run. Knows no torch and no transformers. Called by `cli` and `survey`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UserError
from launcher.plan.data_facts import DataFacts
from launcher.recipe import Recipe
from launcher.recipe.data import HubData


def _llama(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """The Llama 3 Herd of Models (2024), table 3; vocabulary 128,256, 8 key-value heads."""
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    }  # fmt: skip


def _qwen(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """Qwen2.5 Technical Report (2024), table 1; the embeddings have 152,064 rows, more than the tokenizer."""
    return {
        "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 152064,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    }  # fmt: skip


def _bert(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """BERT (Devlin et al., 2019), section 3; uncased vocabulary."""
    return {
        "model_type": "bert", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": 30522, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip


_LLAMA_8B, _LLAMA_70B = _llama(4096, 14336, 32, 32), _llama(8192, 28672, 80, 64)
CONFIGURATIONS: Mapping[str, dict[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B": _LLAMA_8B | {"max_position_embeddings": 8192},
    "meta-llama/Meta-Llama-3-70B": _LLAMA_70B | {"max_position_embeddings": 8192},
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_70B,
    "meta-llama/Llama-3.1-405B": _llama(16384, 53248, 126, 128),
    "Qwen/Qwen2.5-7B": _qwen(3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-32B": _qwen(5120, 27648, 64, 40, 8),
    "Qwen/Qwen2.5-72B": _qwen(8192, 29568, 80, 64, 8),
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
        "sliding_window": 4096, "tie_word_embeddings": False,
    },
    "google/gemma-2-9b": {
        "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192, "sliding_window": 4096,
    },  # Gemma 2 (2024), table 1
    "google/vit-large-patch16-224": {
        "model_type": "vit", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 16,
    },  # An Image is Worth 16x16 Words (2021), table 1
    "microsoft/resnet-50": {"model_type": "resnet"},  # transformers' defaults are it; torchvision:resnet50 needs no hub
    "openai-community/gpt2": {"model_type": "gpt2"},  # transformers' defaults are it
    "google-bert/bert-base-uncased": _bert(768, 3072, 12, 12),
    "google-bert/bert-large-uncased": _bert(1024, 4096, 24, 16),
    "google-bert/bert-base-multilingual-cased": _bert(768, 3072, 12, 12) | {"vocab_size": 119547},
}  # fmt: skip
"""Hub id -> what of its config.json says how large the model is. The tests compare the numbers of parameters with those
that the models' cards and papers give."""


def configuration(source: str, file: Path | None) -> dict[str, Any] | None:
    """The given file's configuration, or the shipped one of a hub id; None: there is none.

    Raises:
        UserError: the file is not a model's config.json.
    """
    if file is None:
        return CONFIGURATIONS.get(source)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model-config {file}: {error}; give a model's config.json") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(f"--model-config {file}: has no model_type; give a model's config.json")
    return found


def data_facts(recipe: Recipe) -> DataFacts | None:
    """Rows as the recipe's ``data.limit`` says, and labels as ``task.labels`` does; None where it says too little."""
    data, labels = recipe.data, getattr(recipe.task, "labels", None)
    if data.limit is None or (labels is None and recipe.task.kind != "causal-lm"):
        return None
    held_out = 0 if isinstance(data, HubData) and "validation" in data.splits else data.split.validation
    validation_rows = int(data.limit * held_out)
    return DataFacts(
        train_rows=data.limit - validation_rows, validation_rows=validation_rows, test_rows=0, labels=labels,
        majority=None, columns=["id", *recipe.task.COLUMNS],
    )  # fmt: skip
