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
