"""Warn if some users have too few unseen items for sampled negatives."""

from longplay.launch.evaluation.evaluation import Evaluation
from longplay.launch.settings.config import EvaluationConfig


def few_unseen_warning(result: Evaluation, settings: EvaluationConfig) -> str | None:
    """Return a line about users with fewer unseen items than sampled negatives; None without any."""
    if not result.num_users_few_unseen:
        return None
    _, unseen, sampled = settings.candidate_sets()
    line = (
        f"warning: {result.num_users_few_unseen:,} of {result.num_users:,} users have fewer than "
        f"{settings.num_sampled} unseen items, so {sampled} ranks their targets among fewer"
    )
    none = result.num_users_none_unseen
    if none:
        line += f"; {none:,} have none, so their {unseen} and {sampled} are 1 for any model"
    return f"{line}; compare models by full"


def metric_warning(result: Evaluation, settings: EvaluationConfig, metric: str) -> str | None:
    """Return a line if too few unseen items inflate `metric`, which selects the best checkpoint; else None.

    Args:
        metric: as `train.metric` names it.
    """
    _, unseen, sampled = settings.candidate_sets()
    inflated = {unseen: result.num_users_none_unseen, sampled: result.num_users_few_unseen}
    candidates, _, name = metric.partition("/")
    if not inflated.get(candidates):
        return None
    few = "no unseen item" if candidates == unseen else f"fewer than {settings.num_sampled} unseen items"
    return (
        f"warning: {metric} selects the best checkpoint, but {inflated[candidates]:,} of "
        f"{result.num_users:,} validation users have {few} besides the target; set --train.metric full/{name}"
    )
