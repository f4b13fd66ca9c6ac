"""Amounts as people read them: bytes, time, numbers."""

from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes for people.

    >>> size(1234567)
    '1.2 MB'
    """
    return f"{count:.0f} B" if count < 1000 else _scaled(count, ("B", "kB", "MB", "GB"))


def count(number: float) -> str:
    """How many, with all digits up to a hundred thousand.

    >>> count(9986), count(332_546), count(22_713_986)
    ('9,986', '333 k', '22.7 M')
    """
    if number < 100_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:.0f} k" if number < 999_500 else f"{number / 1e6:,.1f} M"


def duration(seconds: float) -> str:
    """Time for people, in at most two units.

    >>> duration(0.0123), duration(0.25), duration(7.26), duration(75), duration(7500)
    ('12.3 ms', '0.25 s', '7.3 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def joules(amount: float) -> str:
    """Energy for people.

    >>> joules(41.26), joules(7200), joules(1.234e6)
    ('41.3 J', '7.2 kJ', '1.2 MJ')
    """
    return _scaled(amount, ("J", "kJ", "MJ"))


def _scaled(amount: float, units: Sequence[str]) -> str:
    """In the first of the units, each a thousand times the one before, that makes it less than a thousand."""
    power = next((power for power in range(len(units)) if amount < 1000 ** (power + 1)), len(units) - 1)
    return f"{amount / 1000**power:.1f} {units[power]}"


def figure(value: float) -> str:
    """A measured number: four places where it is small, four digits where it is large.

    >>> figure(0.812345), figure(12.34567), figure(12345.6), figure(3), figure(0.000012)
    ('0.8123', '12.35', '12,346', '3', '1.2e-05')
    """
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 0.0005:
        return f"{value:.2g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
