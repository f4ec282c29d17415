"""One look for every figure of the notebooks: colours that colour-blind readers can tell apart."""

import warnings

import matplotlib.pyplot as plt
from cycler import cycler

# tqdm, a dependency of transformers, asks for widgets; nothing here shows a bar.
warnings.filterwarnings("ignore", message="IProgress not found")

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
COLOURS = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK]


def use_style() -> None:
    """Set Matplotlib's defaults."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "grid.alpha": 0.25,
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    )
