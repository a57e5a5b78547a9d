"""Fast versions of e3nn's products and gates, some with hand-written derivatives.

Every module here computes the same as e3nn's module with the same parameters, up to rounding. `set_enabled(False)` turns all
of this off: networks then compute with ordinary operations, product by product, path by path.
"""

from equirelax_lab.models.fast.switch import is_enabled, set_enabled

__all__ = ["is_enabled", "set_enabled"]
