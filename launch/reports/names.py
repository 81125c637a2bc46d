"""Names of models and of kinds of ranking, as tables and figures show them."""

from longplay.models.base.registry import ENCODERS

_KIND_NAMES = {"full_unseen": "all unseen items", "full": "all items, including those already seen"}


def display_name(recipe: str) -> str:
    """Return the display name of the encoder that a recipe is named after; else the recipe's name."""
    return ENCODERS[recipe].display_name if recipe in ENCODERS else recipe


def kind_name(kind: str) -> str:
    """Describe the items that a target is ranked among."""
    if kind.startswith("sampled"):
        return f"{kind.removeprefix('sampled')} sampled items"
    return _KIND_NAMES.get(kind, kind)


def metric_name(metric: str) -> str:
    """Return a metric's name in the literature: HR@10 for hit@10."""
    return metric.replace("hit", "HR").upper()
