"""The text of docs/memory_families.md, from what `families` has found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.families import Row

HEAD = """\
# The memory estimate of every family

    make families

Every architecture that transformers {version} ships for the tasks of this project, in a tiny configuration of its own
class: what `thawline plan` says of it beside what a real pass of plain transformers keeps, on the CPU in fp32, a
micro-batch of 2 texts of 24 tokens (one of them padded) or 2 images. "Measured" are all storages that the forward
leaves alive, without the logits, whose loss the plan counts apart; "states" is the error of parameters, gradients and
AdamW's moments.

{summary}

## How values are known without weights

The model runs on tensors that have shapes and no memory. What follows from the token ids, the mask, positions and
shapes alone is computed, so a model may look at it: masks, end tokens, relative positions, chunks. Where a model
looks at values that depend on its weights, they are assumed: a router gives its experts equal shares of the tokens,
and in a second pass all tokens to the same experts; a sort keeps the order; a mask holds everywhere.

**Experts**: each rank computes all of its tokens, each with as many experts as the router chooses, whatever the
experts are; so of N experts a micro-batch keeps what its tokens are routed to, tokens x chosen. Even and worst
routing differ where something depends on how many experts are met, such as autocast's copies of their weights.
`--explain` and `--json` have both, and the plan takes the larger.

**Texts longer than {longest} tokens** of models that compute one token after the other in Python (Mamba without its
kernels, RWKV, xLSTM) are extrapolated from texts of {lengths} tokens, since the cost of a pass grows with the length.

**Where nothing can be counted** the plan takes an upper bound and says so: {factor} tensors in fp32 of each feature
that a layer takes or makes of each token ({states} in models with states), and {scores} bytes an attention score
(`launcher/models/activation_bound.py`). No family below keeps more; most keep several times less. Model states are
counted as ever, and `auto` goes by both.
"""
NAMES = {"text-classification": "Text classification", "causal-lm": "Causal language models",
         "image-classification": "Image classification"}  # fmt: skip


def written(rows: Sequence[Row]) -> str:
    """The whole page."""
    import transformers

    from launcher.models import activation_bound, long_texts

    trained = [row for row in rows if not row.untrained]
    within = [row for row in trained if row.is_within]
    exact = sum(abs(row.error) <= 0.01 for row in within)
    summary = (
        f"**{len(within)} of the {len(trained)} that train here ({len(within) / len(trained):.1%}) are estimated "
        f"within 1% of their model states and 10% of their activations**, {exact} of them within 1% of both."
    )
    head = HEAD.format(
        version=transformers.__version__, summary=summary, factor=activation_bound.FACTOR,
        states=activation_bound.STATE_FACTOR,
        scores=activation_bound.SCORE_BYTES, longest=max(long_texts.LENGTHS),
        lengths=", ".join(map(str, long_texts.LENGTHS)),
    )  # fmt: skip
    return "\n".join([head, *_tables(trained), *_left_out(rows), ""])


def _tables(trained: Sequence[Row]) -> Iterator[str]:
    for kind, name in NAMES.items():
        yield f"## {name}\n"
        yield "| architecture | measured, KiB | predicted, KiB | error | states | experts |"
        yield "|---|---|---|---|---|---|"
        for row in sorted((row for row in trained if row.kind == kind), key=lambda row: row.model_type):
            cells = (f"{row.predicted / 1024:.1f}", f"{row.error:+.2%}") if not row.unplanned else ("bound", "")
            yield (
                f"| {row.model_type} | {row.measured / 1024:.1f} | {' | '.join(cells)} | {row.states_error:+.2%} | "
                f"{'yes' if row.has_experts else ''} |"
            )
        yield ""


def _left_out(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Outside of the bounds\n"
    for row in rows:
        if not row.untrained and not row.is_within:
            yield f"- {row.model_type} ({row.kind}): {row.unplanned or f'{row.error:+.1%}'}"
    yield "\n## Not trained here, so without a measurement\n"
    yield "A library is missing, the class takes other inputs than the task has, or no tiny configuration works:\n"
    for row in rows:
        if row.untrained:
            yield f"- {row.model_type} ({row.kind}): {row.untrained}"
