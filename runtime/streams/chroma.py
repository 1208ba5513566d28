"""Chroma of half the luma's resolution: up by linear interpolation from where its samples are sited, down by the dual.

Down after up is the identity on every plane, and no noise stays behind in between. The pairs are the low-passes of the
spline wavelets 5/3 (sited on a luma sample) and 3/1 (between two): Cohen, Daubechies, Feauveau, "Biorthogonal bases of
compactly supported wavelets", 1992.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def _between(out: Array, first: Array, second: Array, share: float) -> None:
    """``out = share * first + (1 - share) * second`` with no array but ``out``: second + share * (first - second)."""
    np.subtract(first, second, out=out)
    out *= np.float32(share)
    out += second


def double_columns(narrow: Array, wide: Array, on_even: bool) -> None:
    """Twice the columns, by linear interpolation; past the border, the border's sample."""
    even, odd = wide[:, 0::2], wide[:, 1::2]
    if on_even:
        even[:] = narrow
        _between(odd[:, :-1], narrow[:, :-1], narrow[:, 1:], 0.5)
        odd[:, -1] = narrow[:, -1]
    else:
        _between(even[:, 1:], narrow[:, 1:], narrow[:, :-1], 0.75)
        even[:, 0] = narrow[:, 0]
        _between(odd[:, :-1], narrow[:, :-1], narrow[:, 1:], 0.75)
        odd[:, -1] = narrow[:, -1]


def double_rows(low: Array, first: int, tall: Array, on_even: bool) -> None:
    """Twice the rows from row ``first`` on, as :func:`double_columns`; neighbours above and below are looked up."""
    count = len(tall) // 2
    own = low[first : first + count]
    above = low[max(first - 1, 0) : first + count - 1]  # misses its first row at the upper border
    below = low[first + 1 : first + count + 1]  # ... and this its last at the lower
    even, odd = tall[0::2], tall[1::2]
    share = 0.5 if on_even else 0.75
    if on_even:
        even[:] = own
    else:
        top = count - len(above)
        _between(even[top:], own[top:], above, share)
        even[:top] = own[:top]
    _between(odd[: len(below)], own[: len(below)], below, share)
    odd[len(below) :] = own[len(below) :]


def halve_columns(wide: Array, narrow: Array, shared: int, on_even: bool) -> None:
    """Half the columns, by the filter that is dual to :func:`double_columns`."""
    if shared:
        _dual(wide.T, narrow.T, on_even)
    else:
        narrow[:] = wide


def halve_rows(tall: Array, low: Array, shared: int, on_even: bool) -> None:
    """Half the rows, by the filter that is dual to :func:`double_rows`."""
    if shared:
        _dual(tall, low, on_even)
    else:
        low[:] = tall


def _dual(fine: Array, coarse: Array, on_even: bool) -> None:
    """Half the rows: (-1, 2, 6, 2, -1)/8 around the even ones, or (-1, 3, 3, -1)/4 between pairs.

    Reflected at the border as the interpolation is: on the border's sample, or just outside it. ``fine`` is
    used up.
    """
    even, odd = fine[0::2], fine[1::2]
    if not on_even:
        # 3 (e + o) - o[-1] - e[+1], over 4
        np.add(even, odd, out=coarse)
        coarse *= np.float32(3)
        coarse[1:] -= odd[:-1]
        coarse[0] -= even[0]
        coarse[:-1] -= even[1:]
        coarse[-1] -= odd[-1]
        coarse *= np.float32(0.25)
        return
    # In two steps: d = o - (e + e[+1]) / 2, then e + (d + d[-1]) / 4.
    coarse[:-1] = even[1:]
    coarse[-1] = even[-1]
    coarse += even
    coarse *= np.float32(0.5)
    odd -= coarse
    coarse[1:] = odd[:-1]
    coarse[0] = odd[0]
    coarse += odd
    coarse *= np.float32(0.25)
    coarse += even
