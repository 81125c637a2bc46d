"""Import what the forks of the server in `support.ranks` need, once."""

import atexit
import gc
import importlib
import pkgutil

import longplay.launch.evaluate
import longplay.launch.prepare
import longplay.launch.recommend
import longplay.launch.train
import longplay.models.blocks
import longplay.models.losses

# DeepSpeed imports these at its first engine, which takes seconds.
for name in (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._dynamo",
    "torch._inductor.compile_fx",
):
    importlib.import_module(name)
for package in (longplay.models.blocks, longplay.models.losses):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

gc.collect()
gc.freeze()  # a collection in a fork neither visits nor copies what was imported here
atexit.register(gc.unfreeze)
