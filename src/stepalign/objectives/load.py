"""From an objective's settings to its loss."""

from __future__ import annotations

from functools import partial

from stepalign.core.batch import StepComparisons
from stepalign.core.protocols import Objective
from stepalign.objectives.settings import Objectives
from stepalign.objectives.stepwise import stepwise_loss


def load_objective(settings: Objectives) -> Objective[StepComparisons]:
    """The loss with these hyperparameters."""
    return partial(stepwise_loss, settings)
