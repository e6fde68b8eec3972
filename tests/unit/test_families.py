"""The plan's estimate of architectures of every kind against real passes of plain transformers.

Representatives; ``make families`` walks all that transformers ships.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from accelerate import init_empty_weights

from benchmarks.families import row_of
from launcher.models import activations, long_texts
from launcher.models.fake_values import FakeValues
from launcher.models.flops import FlopMeter, TooMany

FAMILIES = {
    "text-classification": [
        "bart", "bert", "canine", "deberta", "deberta-v2", "funnel", "gpt2", "longformer", "modernbert", "perceiver",
        "reformer", "t5", "xlnet",
    ],
    "causal-lm": [
        "bamba", "deepseek_v3", "falcon_mamba", "gemma3_text", "gpt_oss", "granitemoe", "jamba", "jetmoe", "mamba2",
        "mixtral", "qwen3_moe", "qwen3_next", "rwkv",
    ],
    "image-classification": ["convnext", "deit", "swin", "vit"],
}  # fmt: skip
MIXTURES = {"deepseek_v3", "gpt_oss", "granitemoe", "jamba", "jetmoe", "mixtral", "qwen3_moe", "qwen3_next"}


@pytest.mark.parametrize(("kind", "model_type"), [(kind, name) for kind, names in FAMILIES.items() for name in names])
def test_the_estimate_is_what_a_real_pass_keeps(kind: str, model_type: str) -> None:
    row = row_of(kind, model_type)
    assert not row.untrained
    assert not row.unplanned
    assert row.predicted == pytest.approx(row.measured, rel=0.1)
    assert abs(row.states_error) < 0.01
    assert row.measured <= row.bound, "what is stated where nothing can be counted"
    assert row.has_experts == (model_type in MIXTURES)


@pytest.mark.parametrize("model_type", ["mixtral", "deberta-v2", "mamba", "bert"])
def test_low_precision(model_type: str) -> None:
    """Under autocast, as ddp has it."""
    row = row_of("causal-lm" if model_type in ("mixtral", "mamba") else "text-classification", model_type, "bf16")
    assert row.predicted == pytest.approx(row.measured, rel=0.1)


def mixtral(experts: str) -> torch.nn.Module:
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=200, num_local_experts=8, num_experts_per_tok=2, use_cache=False, experts_implementation=experts,
    )  # fmt: skip
    with init_empty_weights(include_buffers=False):
        return transformers.AutoModelForCausalLM.from_config(config).train()


def test_even_and_worst_routing_are_told_apart() -> None:
    """Expert by expert, autocast makes a copy of the weights of each expert that is met: eight of them, or two."""
    counted = activations.count(
        mixtral("eager"), lambda: activations.text_inputs(2, 64), "cpu", "bf16", is_cast=False
    )  # fmt: skip
    assert counted.routed is not None
    copies = 2 * (8 - 2) * 3 * 32 * 64 * 2  # layers x experts x matrices x elements x bytes
    assert counted.routed.even - counted.routed.worst == pytest.approx(copies, rel=0.1)
    assert counted.saved == counted.routed.even


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_a_mixture_saves_and_computes_what_its_tokens_are_routed_to(experts: str) -> None:
    """Twice the experts is nothing more for a token, on a GPU too."""
    counts = {}
    for num_experts in (8, 16):
        module = mixtral(experts)
        module.config.num_local_experts = num_experts
        with init_empty_weights(include_buffers=False):
            module = transformers.AutoModelForCausalLM.from_config(module.config).train()
        counts[num_experts] = activations.count(
            module, lambda: activations.text_inputs(2, 64), "cuda", "bf16", is_cast=True
        )  # fmt: skip
    assert counts[16].saved == pytest.approx(counts[8].saved, rel=0.1)
    assert counts[16].work.forward == pytest.approx(counts[8].work.forward, rel=0.05)


def test_a_long_text_is_extrapolated_where_tokens_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.MambaConfig(
        hidden_size=16, state_size=4, num_hidden_layers=2, vocab_size=64, time_step_rank=2, use_cache=False
    )
    with init_empty_weights(include_buffers=False):
        module = transformers.AutoModelForCausalLM.from_config(config).train()
    meter = FlopMeter()

    def count(length: int) -> activations.Activations:
        given = lambda: activations.text_inputs(1, length)  # noqa: E731
        return activations.count(module, given, "cpu", "fp32", is_cast=False, meter=meter)

    monkeypatch.setattr(long_texts, "LENGTHS", (8, 16, 24))
    monkeypatch.setattr(long_texts, "MOST_OPERATORS", 300)
    real = count(48)
    meter.room = 300
    with pytest.raises(TooMany):
        count(48)
    found = long_texts.counted(count, 48, meter)
    assert meter.is_slow
    assert found.saved == pytest.approx(real.saved, rel=0.01)
    assert found.work.forward == pytest.approx(real.work.forward, rel=0.01)


def test_values_follow_from_inputs_and_shapes_alone() -> None:
    with FakeValues() as mode:
        weight = torch.nn.Parameter(torch.empty(4, 4))
        mask = torch.ones(2, 4, dtype=torch.int64)
        mask[0, -2:] = 0
        rows = torch.randn(2, 4, 4) @ weight
        assert bool((mask == 0).any())
        assert mask.sum().item() == 6
        assert mask.nonzero().shape == (6, 2)
        assert rows[mask.bool()].shape == (6, 4)
        assert not mode.assumed
        known = torch.zeros(3)
        known[:2] = rows[0, 0, :2].detach()
        assert mode.value(known) is None, "a weight has a part in it now"
        chosen = rows.topk(2).indices
        counts = torch.nn.functional.one_hot(chosen.flatten(), 4).sum(0)
        assert counts.tolist() == [4, 4, 4, 4], "each of four gets an equal share"
        assert rows[rows > 0].shape == (32,), "as if the mask held everywhere"
        assert mode.assumed
