"""The published experiments as data: one YAML file for each benchmark, with a section for each model, method and variant.

`read` resolves one recipe, and the benchmarks make a run's settings from it. A file has, for every model,

    MODEL:                     # or `all`, which holds for every model
      common:                  # every method
        published: {...}       # settings, in the layout of config.yaml
        small: {...}
      METHOD:
        published: {...}       # only what differs from `common`, and from the method that it starts from
        released: {...}        # only what differs from `published`
        refused: "..."         # why the model cannot be trained with the method

`methods.yaml` names the method that another one starts from, and the settings that define a method. A comment after a value, or
in the lines above its key, belongs to the value and is printed with it.
"""

from equirelax_lab.recipes.recipe import VARIANTS, Recipe, benchmarks, read, variants

__all__ = ["VARIANTS", "Recipe", "benchmarks", "read", "variants"]
