"""The licence allow-list, tested on 500 planted licences."""

from __future__ import annotations

import random

import pytest

from service.admission.licences import refused_licence
from trainer.recipe import Hygiene

LIST = Hygiene(licenses=("MIT", "Apache-2.0", "BSD-3-Clause"))


@pytest.mark.parametrize(
    ("licence", "reason"),
    [
        ("MIT", None),
        (" mit ", None),
        ("GPL-3.0-only", "license"),
        ("GPL-3.0-only OR MIT", None),
        ("MIT/GPL-2.0", None),
        ("MIT AND GPL-2.0", "license"),
        ("MIT AND (Apache-2.0 OR GPL-2.0)", None),
        ("(MIT OR GPL-2.0) AND (GPL-2.0 OR LGPL-2.1)", "license"),
        ("Apache-2.0 WITH LLVM-exception", None),
        ("GPL-2.0 WITH Classpath-exception-2.0", "license"),
        ("MIT License", "license"),
        ("MIT OR", "license"),
        ("(" * 100_000, "license"),
        (None, "no_license"),
        ("", "no_license"),
        ("NOASSERTION", "no_license"),
    ],
)
def test_an_expression(licence, reason):
    assert refused_licence(licence, LIST) == reason
    assert refused_licence(licence, Hygiene()) is None


def test_unknown_licences_may_be_allowed():
    lenient = Hygiene(licenses=("MIT",), unknown_license="allow")
    assert refused_licence(None, lenient) is None and refused_licence("GPL-2.0", lenient) == "license"


def test_500_planted_licences_are_all_found_and_no_other():
    chance = random.Random(3)
    good, bad = ["MIT", "Apache-2.0", "BSD-3-Clause"], ["GPL-3.0-only", "AGPL-3.0-or-later", "proprietary", "SSPL-1.0"]
    planted = [" AND ".join(chance.sample([chance.choice(good), chance.choice(bad)], 2)) for _ in range(250)]
    planted += [" OR ".join(chance.sample(bad, 2)) for _ in range(250)]
    fine = [f"{chance.choice(good)} OR {chance.choice(bad)}" for _ in range(250)] + chance.choices(good, k=250)
    assert all(refused_licence(licence, LIST) == "license" for licence in planted)
    assert not any(refused_licence(licence, LIST) for licence in fine)
