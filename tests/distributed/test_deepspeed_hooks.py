"""The private parts of DeepSpeed that distributed/zero uses; an upgrade that removes one fails here."""

import importlib
import inspect
import re
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from torch import nn

from longplay.distributed.runtime.world import World
from longplay.distributed.zero.deepspeed_env import comm, deepspeed, load_deepspeed
from longplay.distributed.zero.parameter import forbid_gather, zero_parameter
from longplay.distributed.zero.zero_engine import deepspeed_config

load_deepspeed("cpu")


def parameters_of(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]  # any callable


def test_the_installed_version_is_the_pinned_one() -> None:
    assert deepspeed.__version__.split("+")[0] == "0.19.8"


def test_deepspeed_builds_the_shared_memory_op_only_if_it_is_listed_as_compatible() -> None:
    assert deepspeed.ops.__compatible_ops__ == {}
    backend = importlib.import_module("deepspeed.comm.torch")
    assert "deepspeed.ops.__compatible_ops__.get(" in inspect.getsource(backend.build_shm_op)


def test_zero_init_converts_one_parameter() -> None:
    assert parameters_of(deepspeed.zero.Init._convert_to_deepspeed_param) == ["self", "param"]
    assert parameters_of(deepspeed.zero.Init._aligned_size) == ["self", "param"]


def test_both_optimizers_clip_in_one_method() -> None:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    for optimizer, first in (
        (DeepSpeedZeroOptimizer, "grad_groups_flat"),
        (DeepSpeedZeroOptimizer_Stage3, "sub_group_id"),
    ):
        source = inspect.getsource(optimizer)
        assert f"def unscale_and_clip_grads(self, {first}, total_norm)" in source
        assert source.count("self.unscale_and_clip_grads(") >= 1
        assert "def get_grad_norm_direct(self, gradients, params" in source
    for name in ("_get_fp32_grad_state_partition", "_get_fp32_opt_state_partition"):
        assert hasattr(DeepSpeedZeroOptimizer_Stage3, name)
    for name in ("_lazy_init_hp_params_optimizer_state", "update_lp_params"):
        assert hasattr(DeepSpeedZeroOptimizer, name)


def attributes_of_a_built_optimizer(world: World, stage: int) -> list[str]:
    module = nn.Linear(4, 4)
    config = deepspeed_config(
        zero_stage=stage,
        gradient_accumulation_steps=1,
        max_grad_norm=1.0,
        reduce_bucket_elements=1 << 20,
        overlap_comm=False,
    )
    optimizer = torch.optim.AdamW(module.parameters())
    engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
    assert not engine.tput_timer.config.enabled, "DeepSpeed would synchronize the device at each step"
    return [name for name in dir(engine.optimizer) if not name.startswith("__")]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_has_the_attributes_that_we_read(stage: int) -> None:
    common = {
        "averaged_gradients",
        "get_grad_norm_direct",
        "optimizer",
        "param_groups",
        "unscale_and_clip_grads",
    }
    if stage == 3:
        own = {"fp32_partitioned_groups_flat", "fp16_groups"}
    else:
        own = {"single_partition_of_fp32_groups", "params_in_partition"}
    assert common | own <= set(run_ranks(attributes_of_a_built_optimizer, 1, stage)[0])


def gather_a_forbidden_parameter(world: World) -> tuple[bool, str]:
    parameter = zero_parameter(torch.arange(8.0).view(4, 2) + world.rank, 8, trainable=False)
    untouched = torch.equal(parameter.ds_tensor.view(4, 2), torch.arange(8.0).view(4, 2) + world.rank)  # type: ignore[attr-defined]  # DeepSpeed's own
    forbid_gather(parameter)
    with pytest.raises(AssertionError) as caught:
        parameter.all_gather()  # type: ignore[attr-defined]  # DeepSpeed's own
    return untouched, str(caught.value)


def test_a_parameter_built_from_partitions_keeps_them_and_cannot_be_gathered() -> None:
    for untouched, message in run_ranks(gather_a_forbidden_parameter, 2):
        assert untouched
        assert "gather the whole item table (8, 2)" in message


def test_collectives_accept_the_arguments_that_we_pass() -> None:
    source = inspect.getsource(comm.comm)
    for call in (
        r"all_to_all_single\(\s*output,\s*tensor,",
        r"all_gather_into_tensor\(\s*output_tensor,\s*tensor\b",
    ):
        assert re.search(f"def {call}", source), call
