"""How far a stage is, on one rank: what its loop counts, and what a checkpoint's `Position` is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.checkpoint import Best, Position
from launcher.divergence import Course
from launcher.gradient_witness import Pushes
from launcher.memory_meter import MemoryMeter


@dataclass
class Meter:
    """Sums since the last line of metrics."""

    loss: float = 0.0
    size: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, size: float, samples: float, tokens: float, seconds: float) -> None:
        self.loss, self.size = self.loss + loss, self.size + size
        self.samples, self.tokens, self.seconds = self.samples + samples, self.tokens + tokens, self.seconds + seconds


@dataclass
class Progress:
    """Where the stage stands."""

    best: Best | None
    memory: MemoryMeter
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    pushes: Pushes = field(default_factory=Pushes)
    """What this rank saw the parameters pushed by; after a checkpoint it goes on from what all saw."""
    course: Course = field(default_factory=Course)
    skipped: int = 0
    """Optimizer steps in a row that were not taken, because the gradient was not finite."""
    meter: Meter = field(default_factory=Meter)

    @classmethod
    def at(cls, position: Position, best: Best | None, memory: MemoryMeter) -> Progress:
        """As it was when a checkpoint inside the stage was written."""
        return cls(
            best=best,
            memory=memory,
            step=position.step,
            metrics=position.metrics,
            pushes=Pushes(set(position.had_gradient), dict(position.slight)),
            course=position.course,
        )
