"""Colours that tell which step decided a token, readable on the ground they stand on.

Violet, by way of rose, to gold: two ends that colour-blind eyes tell apart too. All are of one
luminance, so what can be read at one end can be read at the other.
"""

from functools import cache
from math import cos, radians, sin

FIRST, LATEST = 295.0, 435.0  # hues of OKLCH, in degrees
# as far from black as from white: 4.5 to 1, what WCAG asks of text, on both
BETWEEN = 0.179
ON_LIGHT, ON_DARK = 0.12, 0.42  # relative luminance of colours on a light page, and on a dark one
LEVELS = 64


@cache
def shade(level: int, luminance: float) -> str:
    """Number `level` of LEVELS + 1 colours of this relative luminance, as #rrggbb."""
    hue = FIRST + (LATEST - FIRST) * level / LEVELS
    chroma = 0.2
    while True:
        low, high = 0.0, 1.0
        for _ in range(30):  # lightness of that luminance
            lightness = (low + high) / 2
            above = _luminance(_linear(lightness, chroma, hue)) > luminance
            low, high = (low, lightness) if above else (lightness, high)
        red, green, blue = _linear(low, chroma, hue)
        if min(red, green, blue) >= 0 and max(red, green, blue) <= 1:
            return "#" + "".join(f"{_encoded(value):02x}" for value in (red, green, blue))
        chroma -= 0.01  # no screen shows it: paler


def level(share: float) -> int:
    """The number of the colour for a share from 0 to 1."""
    return round(min(max(share, 0.0), 1.0) * LEVELS)


def contrast(colour: str, ground: str) -> float:
    """The contrast ratio of two colours #rrggbb, from 1 to 21 (WCAG 2.2)."""
    dark, light = sorted(map(_luminance_of, (colour, ground)))
    return (light + 0.05) / (dark + 0.05)


def _linear(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to linear sRGB (B. Ottosson, A perceptual color space for image processing, 2020)."""
    a, b = chroma * cos(radians(hue)), chroma * sin(radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _luminance(linear: tuple[float, float, float]) -> float:
    red, green, blue = linear
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _luminance_of(colour: str) -> float:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return _luminance((_decoded(red), _decoded(green), _decoded(blue)))


def _encoded(value: float) -> int:
    small = value <= 0.0031308
    return round(255 * (12.92 * value if small else 1.055 * value ** (1 / 2.4) - 0.055))


def _decoded(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
