"""Methods look alike and stand in one order everywhere, and their colours stand out on screens and on paper."""

from __future__ import annotations

import re

from browser import contrast
from equirelax_lab.report.looks import COLOURS, METHODS, VARIABLES, looks, place, variables
from equirelax_lab.tasks.methods import CHOICES


def test_a_method_looks_the_same_in_every_figure_and_its_variants_differ() -> None:
    few, many = looks(["strict", "ace"]), looks(["resilient", "ace", "scheduled", "strict"])
    assert all(few[method] == many[method] == METHODS[method] for method in few)
    variants = looks(["strict e2cnn", "strict conv", "ace e2cnn"])
    assert variants["strict e2cnn"].colour == variants["strict conv"].colour != variants["ace e2cnn"].colour
    assert variants["strict e2cnn"].dash != variants["strict conv"].dash
    alone = looks([f"ace learning_rate={rate}" for rate in range(8)])
    assert len({(one.colour, one.dash) for one in alone.values()}) == 8
    assert alone["ace learning_rate=0"].colour == METHODS["ace"].colour
    assert METHODS["strict"].colour not in {one.colour for one in alone.values()}
    assert looks(["mine", "ace"])["ace"] == METHODS["ace"]  # a method of somebody else


def test_every_method_of_the_command_line_has_a_look_and_a_place_of_its_own() -> None:
    assert list(METHODS) == list(CHOICES)
    assert len({(look.colour, look.dash) for look in METHODS.values()}) == len(METHODS)
    assert len({(look.colour, look.marker) for look in METHODS.values()}) == len(METHODS)
    assert sorted(["mine", "ace", "strict"], key=place) == ["strict", "ace", "mine"]


def test_colours_stand_out_from_their_ground_in_light_and_dark() -> None:
    light, dark, _ = variables().split("@media")
    for theme in (light, dark):
        found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))
        assert found.keys() >= set(VARIABLES.values())
        for colour in COLOURS:
            assert contrast(found[VARIABLES[colour]], found["ground"]) >= 3
