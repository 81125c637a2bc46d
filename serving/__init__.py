"""A trained model as a folder of plain files, and recommending from it on one machine.

Nothing here imports DeepSpeed, starts a process group or unpickles: `longplay.load` is the way in.
"""
