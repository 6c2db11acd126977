import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from visattn.benchmark.zoo_plot import common_area, training_figure
from visattn.benchmark.zoo_results import Training


def row(name, multiply_adds, forward, accuracy):
    counts = {"parameters": 5, "steps": 1, "left_out": 0, "images": 9, "seed": 0, "train_images": 9}
    run = {
        "minutes": 2.0,
        "threads": 2,
        "dtype": "float32",
        "processor": "some",
        "cores": 1.9,
        "views": 1,
        "accuracy_views": None,
        "training": 3.0,
    }
    return Training(name=name, multiply_adds=multiply_adds, forward=forward, accuracy=accuracy, **counts, **run)


def test_no_label_touches_another_or_a_point():
    # Twenty networks much alike, two of them the same.
    rows = [
        row(f"backbone_{index // 2 * 2}_32", 60e6 + 1e6 * (index // 2), 500 + index, 0.7 + 0.002 * index)
        for index in range(20)
    ]
    rows += [row("airbench94", 124e6, 900, 0.8), row("airbench94", 124e6, 900, 0.8)]
    figure = training_figure(rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        labels = [text for text in axes.texts if text.get_text()]
        assert len(labels) == len(rows)
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in labels]
        assert all(common_area(one, other) == 0 for one, other in itertools.combinations(boxes, 2))
        for line in axes.lines:
            x, y = axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
            assert not any(box.contains(x, y) for box in boxes)
        assert all(common_area(box, axes.bbox) == pytest.approx(box.width * box.height) for box in boxes)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no trainings"):
        training_figure([])
