"""Recipes: a name for a whole configuration. A YAML file and dotted overrides may change its settings."""

from collections.abc import Callable
from typing import Any

from longplay.common.registry import Registry

Settings = dict[str, Any]
RECIPES: Registry[Callable[[], Settings]] = Registry("recipe")


def recipe(function: Callable[[], Settings]) -> Callable[[], Settings]:
    """Register a function that returns nested settings under the function's name; use as a decorator."""
    return RECIPES.register(function.__name__, function)


def _study(model: str, **encoder: Any) -> Settings:
    """Return the same settings for every model: width 64, one block, context length 200, full cross-entropy.

    A few short runs of MambaRec on ML-1M's validation split chose the learning rate, dropout and rows per
    step; see docs/results/ml1m.md. The other models use them untuned.
    """
    return {
        "seed": 0,
        "context_length": 200,
        "encoder": {"model": model, "d_model": 64, "num_blocks": 1, "dropout": 0.2, **encoder},
        "loss": {"name": "full_softmax"},
        "data": {"rows_per_step": 36, "num_lanes": 12},
        "train": {"lr": 8e-3, "max_epochs": 20, "patience": 5},
    }


@recipe
def demo() -> Settings:
    """MambaRec on a small synthetic dataset: a few minutes on two CPU cores."""
    settings = _study("mambarec", dropout=0.1)
    settings["context_length"] = 100
    settings["train"] |= {"max_epochs": 6, "max_minutes": 4.0, "patience": 3}
    return settings


@recipe
def ml1m() -> Settings:
    """RecMamba on MovieLens-1M: less than twenty minutes on two CPU cores."""
    settings = _study("recmamba")
    settings["train"] |= {"max_minutes": 19.0, "patience": None}
    return settings


@recipe
def gru4rec() -> Settings:
    """GRU4Rec (Hidasi et al., 2016)."""
    return _study("gru4rec")


@recipe
def sasrec() -> Settings:
    """SASRec (Kang and McAuley, 2018)."""
    return _study("sasrec")


@recipe
def recmamba() -> Settings:
    """RecMamba: a Transformer block whose self-attention is a Mamba mixer."""
    return _study("recmamba")


@recipe
def mambarec() -> Settings:
    """MambaRec: Mamba blocks without feed-forward layers."""
    return _study("mambarec")


@recipe
def moematrrec() -> Settings:
    """MoEMaTrRec: Mamba and causal self-attention in parallel, combined by a causal gate."""
    return _study("moematrrec")


def _lifelong() -> Settings:
    """MambaRec at context length 5,000 in bf16, for item tables too large for a full cross-entropy."""
    return {
        "seed": 0,
        "context_length": 5000,
        "encoder": {"model": "mambarec", "d_model": 64, "num_blocks": 2, "dropout": 0.1},
        "loss": {"name": "sampled_softmax", "negatives": "frequency", "num_negatives": 8192},
        "engine": {"precision": "bf16"},
        "data": {"rows_per_step": 128, "num_lanes": 64},
        "train": {
            "lr": 2e-3,
            "warmup_steps": 1000,
            "max_epochs": 5,
            "eval_every_steps": 2000,
            "checkpoint_every_steps": 500,
        },
        "evaluation": {"rows_per_batch": 4, "max_validation_users": 5000},
    }


@recipe
def lfm5k() -> Settings:
    """LFM-1b (31.6 million items) at context length 5,000, for a GPU cluster; untuned."""
    return _lifelong()


@recipe
def kuairand5k() -> Settings:
    """KuaiRand-27K (32 million items) at context length 5,000, for a GPU cluster; untuned."""
    return _lifelong()


def get_recipe(name: str) -> Settings:
    """Return the settings of the recipe `name`.

    Raises:
        UnknownNameError: no recipe has this name.
    """
    return RECIPES[name]()
