"""e3nn's products and gates made fast, some with derivatives that are written out by hand.

Every module here computes what e3nn's module of the same parameters computes, to rounding. `set_enabled(False)` turns all
of this off: networks then compute with ordinary operations, product by product, path by path.
"""

from equirelax_lab.models.fast.switch import is_enabled, set_enabled

__all__ = ["is_enabled", "set_enabled"]
