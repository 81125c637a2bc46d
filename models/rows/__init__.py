"""Reading looked-up item rows by index, with gradients that are summed in a fixed order."""
