import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from margins import plots


def test_style_sets_the_palette_and_legible_sizes():
    with plots.styled():
        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        assert [to_rgb(colour) for colour in cycle] == [to_rgb(colour) for colour in plots.PALETTE]
        # On a phone of 360 CSS pixels every text must stay above 8 pixels.
        width, names = plt.rcParams["figure.figsize"][0], ("axes.labelsize", "xtick.labelsize", "legend.fontsize")
        assert all(plt.rcParams[name] / 72 / width * 360 > 8 for name in names)
        figure, axes = plt.subplots()
        assert figure.get_constrained_layout()
        assert not axes.spines["top"].get_visible()
        plt.close(figure)


def test_style_twice_is_style_once():
    with plots.styled():
        once = dict(mpl.rcParams)
        plots.style()
        assert dict(mpl.rcParams) == once


def test_styled_gives_the_settings_back_after_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(ZeroDivisionError), plots.styled():
        raise ZeroDivisionError
    assert dict(mpl.rcParams) == before


def test_colours_and_markers_are_distinct():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) == len(set(plots.MARKERS))


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 2)])
def test_panels_are_as_many_as_asked_and_one_legend_names_each_label_once(count, rows):
    with plots.styled():
        figure, axes = plots.panels(count, height=2.0)
        assert len(axes) == len(figure.axes) == count and figure.get_figheight() == 2.0 * rows
        for k, axis in enumerate(axes):
            axis.plot([0, 1], label="both")
            axis.plot([1, 0], label=f"of {k}")
        plots.legend(figure, axes)
        assert [text.get_text() for text in figure.legends[0].texts] == ["both", *(f"of {k}" for k in range(count))]
        figure.canvas.draw()
        assert figure.legends[0].get_window_extent().y0 >= axes[0].get_tightbbox().y1  # above, not over, the panels
        plt.close(figure)
