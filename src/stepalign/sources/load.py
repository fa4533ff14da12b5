"""From a source's settings to the source."""

from __future__ import annotations

from typing import assert_never

from stepalign.core.batch import StepComparisons
from stepalign.core.protocols import DifferentiableJudge, Source
from stepalign.sources.by_prompt import PromptSampling
from stepalign.sources.candidates import candidate_source
from stepalign.sources.clean_gradient import clean_gradient_source
from stepalign.sources.settings import Branching, Candidates, CleanGradient, Sources


def load_source(
    settings: Sources, branching: Branching, sampling: PromptSampling, judge: DifferentiableJudge
) -> Source[StepComparisons]:
    """The source with these settings; only "clean-gradient" asks the judge for gradients."""
    match settings:
        case Candidates():
            return candidate_source(settings, branching, sampling, judge)
        case CleanGradient():
            return clean_gradient_source(branching, sampling, judge)
    assert_never(settings)
