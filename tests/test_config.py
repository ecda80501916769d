from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.config import (
    DEFAULT_API_URL,
    Settings,
    check_api_url,
    dump_toml,
    find_project,
    load_config,
    save_token,
)
from chisel.errors import ConfigError
from chisel.model import Secret
from chisel.paths import Paths

TOKEN = "dop_v1_secret"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(config_dir=tmp_path / "config", cache_dir=tmp_path / "cache")


def written(paths: Paths, text: str, mode: int = 0o600) -> Paths:
    paths.config_dir.mkdir(exist_ok=True)
    paths.config_file.write_text(text)
    paths.config_file.chmod(mode)
    return paths


def test_without_a_file_the_defaults_hold_and_there_is_no_token(paths: Paths) -> None:
    config = load_config(paths, {})
    assert (config.token, config.token_source, config.api_url) == (None, None, DEFAULT_API_URL)
    assert config.sizes == ("gpu-mi300x1-192gb",)


def test_a_stored_token_is_private_and_comes_back(paths: Paths) -> None:
    written(paths, 'pool = "mine"\nsizes = ["a", "b"]\n')
    save_token(paths, Secret(TOKEN))
    config = load_config(paths, {})
    assert (config.token, config.token_source) == (Secret(TOKEN), "file")
    assert (config.pool, config.sizes) == ("mine", ("a", "b"))
    assert stat.S_IMODE(paths.config_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.config_dir.stat().st_mode) == 0o700
    assert [entry.name for entry in paths.config_dir.iterdir()] == ["config.toml"]


def test_the_environment_wins(paths: Paths) -> None:
    save_token(paths, Secret(TOKEN))
    config = load_config(paths, {"CHISEL_DO_TOKEN": " from-env\n"})
    assert (config.token, config.token_source) == (Secret("from-env"), "environment")
    assert load_config(paths, {"CHISEL_DO_TOKEN": "  "}).token == Secret(TOKEN)


def test_a_stored_token_never_goes_to_another_api(paths: Paths) -> None:
    save_token(paths, Secret(TOKEN))
    elsewhere = load_config(paths, {"CHISEL_DO_API_URL": "https://evil.example"})
    assert (elsewhere.api_url, elsewhere.token) == ("https://evil.example", None)
    save_token(paths, Secret("other"), api_url="https://proxy.example/")
    assert load_config(paths, {}).api_url == "https://proxy.example"
    assert load_config(paths, {}).token == Secret("other")
    assert load_config(paths, {}, api_url=DEFAULT_API_URL).token is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_token_that_others_could_read_is_refused(paths: Paths, mode: int) -> None:
    written(paths, f'token = "{TOKEN}"\n', mode)
    with pytest.raises(ConfigError, match="others may read it") as caught:
        load_config(paths, {})
    assert caught.value.hint == f"chmod 600 {paths.config_file}"
    assert TOKEN not in str(caught.value)
    assert load_config(paths, {"CHISEL_DO_TOKEN": "x"}).token == Secret("x"), "the file's own is not needed then"
    with pytest.raises(ConfigError):
        save_token(paths, Secret("new"))


def test_a_file_without_a_token_may_be_readable(paths: Paths) -> None:
    assert load_config(written(paths, 'pool = "p"\n', 0o644), {}).pool == "p"


def test_a_link_is_no_place_for_a_token(paths: Paths, tmp_path: Path) -> None:
    paths.config_dir.mkdir()
    (tmp_path / "real").write_text(f'token = "{TOKEN}"\n')
    (tmp_path / "real").chmod(0o600)
    paths.config_file.symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="symbolic link"):
        load_config(paths, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'token = "{TOKEN}\npool = 1', "is not valid TOML"),
        (f'token = "{TOKEN} {TOKEN}"', "characters that no token has"),
        ("pool = 1", "must be a text"),
        ('sizes = "a"', "must be a list"),
        ("sizes = [1]", "must be a list"),
        ('api_url = "http://api.example"', "must start with https"),
        ("x = " + "[" * 5000, "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_the_token(paths: Paths, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(written(paths, text), {})
    assert TOKEN not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("url", ["https://a.example", "http://127.0.0.1:8", "http://localhost", "http://[::1]:9/x"])
def test_urls_a_token_may_travel_to(url: str) -> None:
    assert check_api_url(url + "/") == url


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1", "ftp://x", "x", "", "https://u:p@x", "https://x?q", "https://", "http://127.0.0.1.evil.example",
     "https://x:99999", "https://[", "https://ex\u0430mple"],
)  # fmt: skip
def test_urls_a_token_must_not_travel_to(url: str) -> None:
    with pytest.raises(ConfigError):
        check_api_url(url)


def test_the_project_is_the_nearest_marked_directory(tmp_path: Path) -> None:
    inner = tmp_path / "repo" / "src" / "deep"
    inner.mkdir(parents=True)
    assert find_project(inner).root == inner.resolve()
    (tmp_path / "repo" / ".git").mkdir()
    assert find_project(inner).root == (tmp_path / "repo").resolve()
    (tmp_path / "repo" / "src" / "chisel.toml").write_text('pool = "p"\nenv = ["HF_HOME"]\nsetup = "./s.sh"\n')
    project = find_project(inner)
    assert project.root == (tmp_path / "repo" / "src").resolve()
    assert project.settings == Settings(pool="p", env=("HF_HOME",), setup="./s.sh")
    assert project.id.startswith("src-")


def test_equal_names_in_different_places_are_different_projects(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "My Kernels!").mkdir(parents=True)
    first, second = (find_project(tmp_path / place / "My Kernels!") for place in ("a", "b"))
    assert first.name == second.name == "my-kernels"
    assert first.id != second.id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('colour = "red"', "unknown key `colour`"),
        ('env = ["A-B"]', "cannot name a variable"),
        ('setup = "../x"', "must lie inside"),
        ('setup = "/x"', "must lie inside"),
    ],
)
def test_a_wrong_project_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "chisel.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        find_project(tmp_path)


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"'. \n", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), VALUES, max_size=4))
def test_what_is_written_reads_back(values: dict[str, object]) -> None:
    assert tomllib.loads(dump_toml(values)) == values
