"""Settings: precedence, what counts as unset, and every problem at once."""

import re
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.logs import LOG
from service.settings.environment import PROJECT_RECIPES, chosen_log_format, chosen_recipe
from service.settings.load import OVER_THE_RECIPE, VARIABLES, load_settings
from service.settings.parsers import Price
from service.settings.variables import FOR_COMPOSE

EMBEDDED = PROJECT_RECIPES / "embedded.yaml"
DEFAULT = PROJECT_RECIPES / "qwen-5090.yaml"
ROOT = PROJECT_RECIPES.parent


def load(recipe: Path = DEFAULT, env_file: Path | None = None, flags=None, **environment: str):
    return load_settings(recipe, environment=environment, env_file=env_file, flags=flags)


def test_the_default_recipe_leaves_the_documented_defaults():
    settings = load()
    assert settings.min_new_files == 1000
    assert settings.max_dataset_size == 100_000
    assert settings.check_interval_seconds == 300
    assert settings.eligibility.quality_threshold == 70
    assert (settings.eligibility.min_chars, settings.eligibility.max_chars) == (50, 8000)
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 8090)
    assert settings.database_url is None
    assert settings.token is None


def test_flags_beat_environment_beats_file_beats_recipe(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_text("MIN_NEW_FILES=30\nMAX_DATASET_SIZE=50\nMETRICS_PORT=1000\n")
    settings = load(EMBEDDED, env_file, {"METRICS_PORT": "3000"}, MAX_DATASET_SIZE="60", METRICS_PORT="2000")
    assert settings.min_new_files == 30  # the file over the recipe
    assert settings.max_dataset_size == 60  # the environment over the file
    assert settings.metrics_port == 3000  # the flag over both
    assert settings.check_interval_seconds == 2  # the recipe over the default


@pytest.mark.parametrize("unset", ["", "   ", "your_wandb_api_key_here"])
def test_empty_and_placeholder_values_count_as_unset(unset: str):
    settings = load(WANDB_API_KEY=unset, CODELUPE_TOKEN=unset, MIN_NEW_FILES=unset)
    assert settings.trainer_secrets == {}
    assert settings.token is None
    assert settings.min_new_files == 1000


def test_an_unset_variable_of_the_environment_does_not_hide_the_file(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_text("MIN_NEW_FILES=30\n")
    assert load(env_file=env_file, MIN_NEW_FILES="").min_new_files == 30


def test_a_pool_too_small_for_a_claim_is_refused():
    with pytest.raises(SettingsError, match="DB_POOL_MAX_CONN"):
        load(DB_POOL_MAX_CONN="1")


def test_every_problem_is_reported_at_once(tmp_path: Path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("name: a\nstream: b\nlora: {rank: 0}\nnonsense: 1\n")
    with pytest.raises(SettingsError) as caught:
        load(
            recipe,
            MIN_NEW_FILES="many",
            METRICS_PORT="70000",
            DATABASE_URL="mysql://x:secret@y/z",
            BATCH_SIZE="0",
        )
    text = str(caught.value)
    for part in (
        "lora.rank",
        "nonsense",
        "MIN_NEW_FILES: 'many'",
        "METRICS_PORT: '70000'",
        "DATABASE_URL",
        "BATCH_SIZE",
    ):
        assert part in text
    assert "secret" not in text
    assert caught.value.exit_code == 2


def test_a_text_has_a_maximum_length():
    with pytest.raises(
        SettingsError, match=r"MAX_CONTENT_CHARS: '20000001' is not allowed. Use a whole number from 1 to 20000000"
    ):
        load(MAX_CONTENT_CHARS="20000001")


def test_contradictions_name_both_variables():
    with pytest.raises(SettingsError, match="MIN_CONTENT_CHARS: 9000 is greater than MAX_CONTENT_CHARS, which is 8000"):
        load(MIN_CONTENT_CHARS="9000")


def test_variables_override_the_recipe():
    settings = load(
        MODEL="some/model",
        BATCH_SIZE="2",
        LEARNING_RATE="1e-4",
        USE_FLASH_ATTENTION="false",
        SAMPLE_PREDICTIONS="0",
    )
    assert settings.recipe.base.model == "some/model"
    assert settings.recipe.training.batch_size == 2
    assert settings.recipe.training.learning_rate == 1e-4
    assert settings.recipe.base.attention == "sdpa"
    assert settings.recipe.tracking.sample_predictions == 0


def test_a_folder_with_the_name_of_a_recipe_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("embedded").mkdir()
    assert chosen_recipe(Path("embedded"), environment={}, env_file=None) == EMBEDDED


def test_commands_in_the_folder_of_a_training_use_its_recipe(tmp_path: Path):
    inside = {"CODELUPE_HOME": str(tmp_path)}
    (tmp_path / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    assert (
        chosen_recipe(None, environment=inside, env_file=None) == EMBEDDED
    )  # a service's folder, with somebody's file
    (tmp_path / "training.json").write_text("{}", encoding="utf-8")
    assert chosen_recipe(None, environment=inside, env_file=None) == tmp_path / "recipe.yaml"
    assert chosen_recipe(Path("qwen-5090"), environment=inside, env_file=None) == DEFAULT
    assert chosen_recipe(None, environment={**inside, "CODELUPE_RECIPE": "qwen-5090"}, env_file=None) == DEFAULT


def test_the_recipe_comes_from_the_flag_or_the_variable(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_text("CODELUPE_RECIPE=qwen-5090\n")
    assert chosen_recipe(None, environment={}, env_file=None) == EMBEDDED
    assert chosen_recipe(None, environment={"CODELUPE_RECIPE": ""}, env_file=env_file) == DEFAULT
    assert chosen_recipe(None, environment={"CODELUPE_RECIPE": "embedded"}, env_file=env_file) == EMBEDDED
    assert chosen_recipe(Path("my.yaml"), environment={}, env_file=env_file) == Path("my.yaml")


def test_a_named_stream():
    assert load(CODELUPE_STREAM="my-stream_2").recipe.stream == "my-stream_2"
    for bad in ("a/b", "two words", "adapters"):
        with pytest.raises(SettingsError, match=f"CODELUPE_STREAM: '{bad}'"):
            load(CODELUPE_STREAM=bad)


def test_the_public_address():
    assert load(PUBLIC_URL="https://train.example:8443/lupe/").public_url == "https://train.example:8443/lupe"
    for bad in (
        "train.example",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://x:0",
        "http://x?y",
        "http://u:p@x",
        "http://[x",
    ):
        with pytest.raises(SettingsError, match="PUBLIC_URL"):
            load(PUBLIC_URL=bad)


def test_the_trackers_mode_reaches_the_trainer():
    assert load(WANDB_MODE="offline", HF_TOKEN="t").trainer_secrets == {"WANDB_MODE": "offline", "HF_TOKEN": "t"}
    with pytest.raises(SettingsError, match=r"WANDB_MODE: 'ofline' is not allowed. Use online or offline"):
        load(WANDB_MODE="ofline")


def test_wandb_is_set_up_in_the_file_too(tmp_path: Path):
    (tmp_path / ".env").write_text(
        "WANDB_MODE=offline\nWANDB_ENTITY=team\nWANDB_PROJECT=p\nWANDB_BASE_URL=http://wb:8080/\n"
    )
    settings = load(env_file=tmp_path / ".env")
    expected = {"WANDB_MODE": "offline", "WANDB_ENTITY": "team", "WANDB_BASE_URL": "http://wb:8080/"}
    assert settings.trainer_secrets == expected and settings.recipe.tracking.wandb_project == "p"
    for name, wrong in (("WANDB_PROJECT", "a/b"), ("WANDB_ENTITY", "a b"), ("WANDB_BASE_URL", "wb")):
        with pytest.raises(SettingsError, match=f"{name}: '{wrong}' is not allowed"):
            load(**{name: wrong})


def test_online_without_a_key_is_an_error():
    with pytest.raises(SettingsError, match="WANDB_MODE: online needs WANDB_API_KEY"):
        load(WANDB_MODE="online")
    assert load(WANDB_MODE="online", WANDB_API_KEY="k").trainer_secrets["WANDB_MODE"] == "online"


@pytest.mark.parametrize(
    ("text", "per_kwh", "currency"), [("0.32 EUR", 0.32, "EUR"), ("0.32", 0.32, ""), ("12€", 12.0, "€")]
)
def test_the_price_of_electricity(text: str, per_kwh: float, currency: str):
    assert load(ELECTRICITY_PRICE=text).electricity_price == Price(per_kwh=per_kwh, currency=currency)


@pytest.mark.parametrize("wrong", ["EUR", "0,32 EUR", "-1", "0.3 EUR per kWh", "1e3", "nan"])
def test_a_wrong_price_is_named(wrong: str):
    with pytest.raises(SettingsError, match=r"ELECTRICITY_PRICE: .* is not allowed. Use a price per kWh"):
        load(ELECTRICITY_PRICE=wrong)


def test_the_log_format():
    assert (load().log_format, load(LOG_FORMAT="JSON").log_format) == ("text", "json")
    with pytest.raises(SettingsError, match=r"LOG_FORMAT: 'xml' is not allowed. Use text or json"):
        load(LOG_FORMAT="xml")
    chosen = {name: chosen_log_format(environment={"LOG_FORMAT": name}, env_file=None) for name in ("JSON", "xml", "")}
    assert chosen == {"JSON": "json", "xml": "text", "": "text"}


def test_postgres_variables_make_a_url_with_everything_quoted(tmp_path: Path):
    secret = tmp_path / "password"
    secret.write_text("p@ss/w:rd\n")
    settings = load(POSTGRES_HOST="db.example", POSTGRES_USER="a b", POSTGRES_PASSWORD_FILE=str(secret))
    assert settings.database_url == "postgresql://a%20b:p%40ss%2Fw%3Ard@db.example:5432/coding_db"


def test_database_url_wins():
    url = "postgresql://u@h/d"
    assert load(DATABASE_URL=url, POSTGRES_HOST="other").database_url == url


def test_a_password_file_that_cannot_be_read_is_a_problem():
    with pytest.raises(SettingsError, match="POSTGRES_PASSWORD_FILE"):
        load(POSTGRES_HOST="h", POSTGRES_PASSWORD_FILE="/nowhere/secret")


@pytest.mark.parametrize(
    "given", ["http://vllm:8000", "http://vllm:8000/", "http://vllm:8000/v1", "http://vllm:8000/v1/"]
)
def test_the_vllm_address_is_taken_with_and_without_its_version(given: str):
    assert load(VLLM_URL=given).vllm_url == "http://vllm:8000"


@pytest.mark.parametrize(
    "given",
    [
        *("vllm:8000", "ftp://vllm", "http://", "http://vllm:port", "http://vllm:70000", "http://me:key@vllm", "a b"),
        *("http://..", "http://a..b", "http://-ü-", "http://xn--a", "http://[v1.a]", f"http://{'a' * 70}"),
    ],
)
def test_an_invalid_address_is_a_problem(given: str):
    with pytest.raises(SettingsError, match=r"VLLM_URL: .* is not allowed. Use http://host:port or https://host"):
        load(VLLM_URL=given)


@pytest.mark.parametrize("given", ["two words", "two\nlines", "schlüssel", "bell\x07", "\udcff"])
def test_a_key_that_does_not_fit_into_a_header_is_a_problem_and_is_not_shown(given: str):
    with pytest.raises(SettingsError, match="VLLM_API_KEY: its value is not allowed") as caught:
        load(VLLM_API_KEY=given)
    assert given not in str(caught.value)


def test_an_empty_password_file_is_a_problem(tmp_path: Path):
    (tmp_path / "password").write_text("\n")
    with pytest.raises(SettingsError, match=r"POSTGRES_PASSWORD_FILE: .* is empty"):
        load(POSTGRES_HOST="h", POSTGRES_PASSWORD_FILE=str(tmp_path / "password"))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("MIN_NEW_FILE", "MIN_NEW_FILES"),
        ("QUALITY_TRESHOLD", "QUALITY_THRESHOLD"),
        ("DATABASEURL", "DATABASE_URL"),
        ("POSTGRES_PASWORD", "POSTGRES_PASSWORD"),
        ("max_dataset_size", "MAX_DATASET_SIZE"),
        ("CODELUPE_MIN_NEW_FILES", "MIN_NEW_FILES"),
        ("KEEP-ADAPTERS", "KEEP_ADAPTERS"),
        ("BATCHSIZE", "BATCH_SIZE"),
    ],
)
def test_a_misspelled_name_is_a_problem_in_the_file_and_a_warning_in_the_environment(
    wrong: str, meant: str, tmp_path: Path, caplog
):
    (tmp_path / ".env").write_text(f"{wrong}=7\nMIN_CONTENT_CHARS=9\n")
    with pytest.raises(SettingsError) as caught:
        load(env_file=tmp_path / ".env")
    assert caught.value.problems == [f"{wrong}: there is no such setting. Did you mean {meant}?"]
    with caplog.at_level("WARNING", logger=LOG.name):
        assert load(**{wrong: "7"}) == load()
    assert caplog.messages == [f"{wrong} has no effect. Did you mean {meant}?"]


def test_names_of_others_are_left_alone(tmp_path: Path, caplog):
    others = [
        "PATH",
        "MODE",
        "TEST_DATABASE_URL",
        "POSTGRES_HOST_AUTH_METHOD",
        "HF_HOME",
        "VLLM_PORT",
        "VLLM_API_URL",
        "METRICS_PATH",
        "SANDBOX_SECRET",
        "LOGNAME",
        *FOR_COMPOSE,
    ]
    with caplog.at_level("WARNING", logger=LOG.name):
        load(**dict.fromkeys([*others, "HOSTNAME", "WANDB_PROJECT"], "7"), QUALITY_TRESHOLD=" ")
        assert caplog.messages == []
        (tmp_path / ".env").write_text("".join(f"{name}=7\n" for name in [*FOR_COMPOSE, "POSTGRES_HOST_LIST"]))
        load(env_file=tmp_path / ".env")
    assert len(caplog.messages) == 1
    assert "POSTGRES_HOST_LIST is not a setting and has no effect. The nearest is POSTGRES_HOST" in caplog.messages[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "latin-1"])
def test_a_file_in_another_encoding_is_a_problem(encoding: str, tmp_path: Path):
    (tmp_path / ".env").write_bytes("MIN_NEW_FILES=7 # é".encode(encoding))
    with pytest.raises(SettingsError, match=r"\.env cannot be read .* Save it as UTF-8 text"):
        load(env_file=tmp_path / ".env")
    (tmp_path / ".env").write_bytes("MIN_NEW_FILES=7".encode(encoding))
    if encoding != "latin-1":
        with pytest.raises(SettingsError, match="Save it as UTF-8 text"):
            load(env_file=tmp_path / ".env")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path):
    (tmp_path / ".env").write_bytes("MIN_NEW_FILES=7\n".encode("utf-8-sig"))
    assert load(env_file=tmp_path / ".env").min_new_files == 7


def documented() -> dict[str, str]:
    """Return each variable's comment in .env.example."""
    found, comment = {}, ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if line.startswith("#"):
            comment += line
        elif "=" in line:
            found[line.partition("=")[0]] = comment
            comment = ""
    return found


def test_the_example_file_explains_every_variable():
    explained = documented()
    in_the_compose_file = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert set(explained) == set(VARIABLES) | in_the_compose_file == set(VARIABLES) | set(FOR_COMPOSE)
    for name, comment in explained.items():
        assert "Optional." in comment and "Default:" in comment, name


def test_the_example_file_changes_nothing_by_itself():
    assert load(env_file=ROOT / ".env.example") == load()


def test_the_documented_defaults_are_the_real_ones():
    for name, comment in documented().items():
        default = VARIABLES[name].default if name in VARIABLES else None
        if name not in OVER_THE_RECIPE and isinstance(default, int | float) and not isinstance(default, bool):
            assert f"{default:g}" in comment.rpartition("Default:")[2], name


def test_the_compose_file_passes_every_variable_on():
    compose = (ROOT / "docker-compose.yml").read_text()
    set_by_the_image = {
        "DATABASE_URL",
        "CODELUPE_HOME",
        "METRICS_HOST",
        "METRICS_PORT",
        "POSTGRES_PASSWORD_FILE",
    }
    for name in set(VARIABLES) - set_by_the_image:
        assert f"{name}: " in compose, name
