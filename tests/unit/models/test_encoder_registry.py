"""Custom encoders: a module outside the package registers an encoder with options."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from longplay.models.base.activations import Execution
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS
from longplay.models.encoder import build_encoder
from longplay.models.encoder_size import activation_bytes, num_parameters

CUSTOM_ENCODER = '''
from dataclasses import dataclass

import torch
from torch import nn

from longplay.models.base.activations import Activations
from longplay.models.base.block import EncoderBlock
from longplay.models.base.registry import ENCODERS, EncoderEntry
from longplay.models.base.segments import select_slots


@dataclass(frozen=True, kw_only=True)
class RunningSumOptions:
    """Options of the encoder: the rank of its projection."""

    rank: int = 4

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")


class RunningSumBlock(EncoderBlock):
    """Add a low-rank projection of the running sum of the segment."""

    def __init__(self, config, block_index):
        super().__init__(config, block_index)
        rank = config.options_as(RunningSumOptions).rank
        self.down = nn.Linear(config.d_model, rank, bias=False)
        self.up = nn.Linear(rank, config.d_model, bias=False)

    def forward(self, x, layout, dropout_keys, at=None):
        sums = layout.buckets.map(lambda segments: segments.cumsum(1), self.down(x))
        return select_slots(x + self.up(sums), at)

    @staticmethod
    def activations(config, execution):
        rank = config.options_as(RunningSumOptions).rank
        return Activations(narrow=config.d_model + rank)


ENCODERS.register(
    "running_sum",
    EncoderEntry(block=RunningSumBlock, display_name="RunningSum", options_type=RunningSumOptions),
)
'''


@pytest.fixture(scope="module", autouse=True)
def custom_module(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("custom")
    Path(folder, "custom_encoder.py").write_text(CUSTOM_ENCODER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module("custom_encoder")


def custom_config(**options: Any) -> EncoderConfig:
    return EncoderConfig(model="running_sum", context_length=12, d_model=8, num_blocks=2, options=options)


def test_custom_encoder_is_causal_and_separates_segments() -> None:
    encoder = build_encoder(custom_config(rank=3)).eval()
    x = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    seq_idx = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    before = encoder(x, seq_idx)
    x[0, 7] += 1.0
    changed = (encoder(x, seq_idx) != before).any(2)[0]
    assert changed.tolist() == [False] * 7 + [True] * 5


def test_memory_and_parameters_depend_on_the_options() -> None:
    assert num_parameters(custom_config()) == 2 * 2 * 8 * 4 + 2 * 8
    assert num_parameters(custom_config(rank=3)) == 2 * 2 * 8 * 3 + 2 * 8
    small, large = (activation_bytes(custom_config(rank=rank), Execution()) for rank in (3, 5))
    assert large.saved - small.saved == 2 * 4 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnk": 3}, r"options\.rnk: unknown; did you mean options\.rank\? options of running_sum: rank"),
        ({"rank": "many"}, r"options\.rank='many': Input should be a valid integer"),
        ({"rank": 0}, r"options: rank=0: must be at least 1"),
    ],
)
def test_invalid_option_raises_with_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        custom_config(**options)


def test_options_of_an_encoder_without_options_raise() -> None:
    with pytest.raises(ValueError, match=r"options\.rank: unknown; options of gru4rec: none"):
        EncoderConfig(model="gru4rec", context_length=12, options={"rank": 3})


def test_configs_with_options_are_hashable() -> None:
    assert hash(custom_config(rank=3)) == hash(custom_config(rank=3))
    assert custom_config(rank=3) != custom_config(rank=4)


def test_unknown_encoder_suggests_the_closest_match() -> None:
    with pytest.raises(ValueError, match=r"model='runing_sum': unknown; did you mean running_sum\?"):
        EncoderConfig(model="runing_sum", context_length=12)


def test_display_names_of_built_in_encoders() -> None:
    names = {name: entry.display_name for name, entry in ENCODERS.items() if name != "running_sum"}
    assert names == {
        "gru4rec": "GRU4Rec",
        "mambarec": "MambaRec",
        "moematrrec": "MoEMaTrRec",
        "recmamba": "RecMamba",
        "sasrec": "SASRec",
    }
