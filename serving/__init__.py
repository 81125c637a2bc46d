"""Exported models and recommendations from them on one machine; the entry point is `longplay.load`.

No module here imports DeepSpeed, starts a process group or unpickles.
"""
