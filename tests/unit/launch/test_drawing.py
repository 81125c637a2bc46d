"""Axes of figures have labels."""

import pytest
from matplotlib.figure import Figure

from longplay.launch.reports.drawing import label_short_axis, plain_numbers


@pytest.mark.parametrize("limits", [(11.4, 12.6), (0.9, 4.2), (11, 49), (3, 250)])
def test_a_short_logarithmic_axis_has_whole_numbers_as_labels(limits: tuple[float, float]) -> None:
    axes = Figure().subplots()
    axes.set(yscale="log", ylim=limits)
    label_short_axis(axes.yaxis)
    plain_numbers(axes.yaxis)
    shown = [tick for tick in axes.get_yticks() if limits[0] <= tick <= limits[1]]
    assert len(shown) >= 1 if limits[1] < 2 * limits[0] else len(shown) >= 3
    assert all(tick == round(tick) for tick in shown)
