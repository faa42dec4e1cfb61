"""Colours, marks and hatches of every picture. Colour never carries meaning alone."""

import seaborn as sns

# Pair PALETTE[i] with MARKERS[i] in lines and with HATCHES[i] in bars.
PALETTE = sns.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
