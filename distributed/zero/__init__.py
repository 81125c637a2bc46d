"""The only code that imports DeepSpeed."""
