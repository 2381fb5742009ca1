"""Settings at the ends of their ranges: the last allowed value and the first that is refused."""

from __future__ import annotations

import math

import pytest

from service.errors import SettingsError
from service.settings.environment import PROJECT_RECIPES
from service.settings.load import Settings, load_settings
from service.settings.parsers import number
from service.settings.variables import LONGEST_CONTENT_CHARS, VARIABLES

WHOLE = {
    "POSTGRES_PORT": (1, 65535),
    "MIN_NEW_FILES": (1, None),
    "MAX_DATASET_SIZE": (1, None),
    "MIN_CONTENT_CHARS": (1, None),
    "MAX_CONTENT_CHARS": (1, 20_000_000),
    "MAX_ATTEMPTS": (1, 1000),
    "DB_POOL_MIN_CONN": (0, 1000),
    "DB_POOL_MAX_CONN": (2, 1000),
    "METRICS_PORT": (0, 65535),
    "KEEP_ADAPTERS": (1, None),
    "SAMPLE_PREDICTIONS": (0, 1000),
    "BATCH_SIZE": (1, None),
    "GRADIENT_ACCUMULATION_STEPS": (1, None),
    "MAX_LENGTH": (32, None),
    "DATALOADER_NUM_WORKERS": (0, 256),
}
"""Integers: minimum and maximum (or None)."""
ABOVE_ZERO = ("CHECK_INTERVAL", "SWEEP_INTERVAL", "LEARNING_RATE")
LOWS = [(name, low) for name, (low, _) in WHOLE.items()]
HIGHS = [(name, high) for name, (_, high) in WHOLE.items() if high is not None]
UNLIMITED = [name for name, (_, high) in WHOLE.items() if high is None]
SMALLEST = 5e-324
"""The smallest number above 0."""
OVER_A_RECIPE = [
    ("BATCH_SIZE", 65536),
    ("GRADIENT_ACCUMULATION_STEPS", 65536),
    ("MAX_LENGTH", 1 << 20),
    ("DATALOADER_NUM_WORKERS", 256),
    ("SAMPLE_PREDICTIONS", 1000),
]
"""A variable that overrides a recipe value has the recipe's limits."""
PAIRS = [
    ("MIN_CONTENT_CHARS", "MAX_CONTENT_CHARS"),
    ("DB_POOL_MIN_CONN", "DB_POOL_MAX_CONN"),
    ("MIN_NEW_FILES", "MAX_DATASET_SIZE"),
]


def load(**environment: str) -> Settings:
    """Load the settings of the default recipe with an environment."""
    return load_settings(PROJECT_RECIPES / "qwen-5090.yaml", environment=environment, env_file=None)


def read(name: str, value: object) -> object:
    """Parse a value with the variable's own parser."""
    return VARIABLES[name].parse(str(value))


def test_every_variable_with_a_range_is_here():
    numeric = {name for name, variable in VARIABLES.items() if type(variable.parse).__name__ == "function"
               and variable.parse.__qualname__.split(".")[0] in ("whole", "number")}  # fmt: skip
    assert numeric == {*WHOLE, *ABOVE_ZERO, "QUALITY_THRESHOLD"}


@pytest.mark.parametrize(("name", "low"), LOWS)
def test_the_least_whole_number_is_allowed(name: str, low: int):
    assert read(name, low) == low


@pytest.mark.parametrize(("name", "low"), LOWS)
def test_one_less_than_the_least_is_refused(name: str, low: int):
    with pytest.raises(ValueError, match=f"whole number (of at least|from) {low}"):
        read(name, low - 1)


@pytest.mark.parametrize(("name", "high"), HIGHS)
def test_the_greatest_whole_number_is_allowed(name: str, high: int):
    assert read(name, high) == high


@pytest.mark.parametrize(("name", "high"), HIGHS)
def test_one_more_than_the_greatest_is_refused(name: str, high: int):
    with pytest.raises(ValueError, match=f"to {high}$"):
        read(name, high + 1)


@pytest.mark.parametrize("name", UNLIMITED)
def test_eighteen_digits_are_read_and_nineteen_are_not(name: str):
    assert read(name, 10**18 - 1) == 10**18 - 1
    with pytest.raises(ValueError, match="whole number"):
        read(name, 10**18)


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_the_least_number_above_zero_is_allowed(name: str):
    assert read(name, SMALLEST) == SMALLEST


@pytest.mark.parametrize("name", ABOVE_ZERO)
@pytest.mark.parametrize("value", [0.0, -SMALLEST])
def test_zero_and_less_are_refused_where_a_number_has_to_be_above(name: str, value: float):
    with pytest.raises(ValueError, match="above 0"):
        read(name, value)


def test_a_number_of_at_least_so_much_may_be_exactly_that():
    assert number(2.5)("2.5") == 2.5
    with pytest.raises(ValueError, match=r"of at least 2\.5"):
        number(2.5)(str(math.nextafter(2.5, 0)))


@pytest.mark.parametrize("name", [*ABOVE_ZERO, "QUALITY_THRESHOLD"])
def test_the_greatest_finite_number_is_allowed_and_infinity_is_not(name: str):
    assert read(name, 1.7976931348623157e308) == 1.7976931348623157e308
    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match="number"):
            read(name, value)


def test_a_quality_threshold_may_be_the_least_finite_number():
    assert read("QUALITY_THRESHOLD", -1.7976931348623157e308) == -1.7976931348623157e308
    with pytest.raises(ValueError, match="a finite number"):
        read("QUALITY_THRESHOLD", -math.inf)


def test_a_text_may_be_as_long_as_the_longest_and_no_longer():
    assert LONGEST_CONTENT_CHARS == 20_000_000
    assert load(MAX_CONTENT_CHARS="20000000").eligibility.max_chars == 20_000_000
    with pytest.raises(SettingsError, match="MAX_CONTENT_CHARS: '20000001' is not allowed"):
        load(MAX_CONTENT_CHARS="20000001")


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_a_least_value_that_equals_the_greatest_is_allowed(low: str, high: str):
    load(**{low: "60", high: "60"})


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_a_least_value_one_above_the_greatest_is_refused(low: str, high: str):
    with pytest.raises(SettingsError, match=f"{low}: 61 is greater than {high}, which is 60"):
        load(**{low: "61", high: "60"})


@pytest.mark.parametrize(("name", "most"), OVER_A_RECIPE)
def test_what_goes_over_the_recipe_may_be_the_most_that_a_recipe_may_say_and_no_more(name: str, most: int):
    load(**{name: str(most)})
    with pytest.raises(SettingsError, match=f"{name}: "):
        load(**{name: str(most + 1)})


@pytest.mark.parametrize(("port", "allowed"), [(0, False), (1, True), (65535, True), (65536, False)])
@pytest.mark.parametrize("name", ["PUBLIC_URL", "VLLM_URL"])
def test_an_address_may_name_any_port_but_zero(name: str, port: int, allowed: bool):
    address = f"http://x:{port}"
    if allowed:
        assert read(name, address) == address
    else:
        with pytest.raises(ValueError, match="http://host:port"):
            read(name, address)


@pytest.mark.parametrize(("sign", "allowed"), [(" ", False), ("!", True), ("~", True), ("\x7f", False)])
def test_a_key_may_hold_the_signs_of_ascii_from_the_first_to_the_last(sign: str, allowed: bool):
    if allowed:
        assert read("VLLM_API_KEY", f"a{sign}b") == f"a{sign}b"
    else:
        with pytest.raises(ValueError, match="ASCII letters"):
            read("VLLM_API_KEY", f"a{sign}b")
