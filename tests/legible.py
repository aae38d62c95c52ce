"""What a reader of a figure needs: no text cut off, no numbers on top of each other."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text


def numbers(axis) -> list[list[Text]]:
    """The numbers along x and along y that are drawn: a tick beyond the limits is not."""
    found = []
    for side in (axis.xaxis, axis.yaxis):
        low, high = sorted(side.get_view_interval())
        ticks = [tick for tick in side.get_major_ticks() if low <= tick.get_loc() <= high]
        labels = [tick.label1 for tick in ticks]
        found.append([label for label in labels if label.get_visible() and label.get_text()])
    return found


def assert_legible(figure) -> None:
    """All text lies in the figure, and no numbers of an axis overlap."""
    figure.draw_without_rendering()
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axis in (axis for axis in figure.findobj(Axes) if axis.axison):
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label]
        for labels in numbers(axis):
            texts += labels
            boxes = [label.get_window_extent() for label in labels]
            assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes)), labels
    for text in (text for text in texts if text.get_text()):
        box = text.get_window_extent()
        assert np.all(box.min >= figure.bbox.min - 1), text
        assert np.all(box.max <= figure.bbox.max + 1), text
