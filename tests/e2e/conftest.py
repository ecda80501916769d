from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import User, destroy_all, droplets_of, running_sandbox


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out of the runs with an agent what it does not serve, and the slower kind of droplet."""
    items[:] = [item for item in items if "by-agent" not in item.name or _is_served(item)]


def _is_served(item: pytest.Item) -> bool:
    if "openssh" in item.name:
        return False
    return item.path.name != "test_loop.py" or "whole_loop" in item.name


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def openssh_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running_sandbox(tmp_path_factory.mktemp("openssh"), droplets="openssh") as cloud:
        yield cloud


@pytest.fixture(params=["off", "on"], ids=["alone", "by-agent"])
def make_user(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[dict[str, str]], User]]:
    """Give a maker of users: every command line of these tests runs both ways, and must say and do the same."""
    made: list[User] = []

    def make(cloud: dict[str, str]) -> User:
        home, work = tmp_path / "home", tmp_path / "work"
        home.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        made.append(User(home=home, cwd=work, cloud=cloud, agent=request.param))
        return made[-1]

    yield make
    for someone in made:
        if request.param == "on":
            someone.chisel("agent", "stop")


class Standing:
    """A droplet that stays up between tests: what is tested on it is not how it comes up."""

    def __init__(self, cloud: dict[str, str], home: Path) -> None:
        self._cloud = cloud
        self._home = home
        self.ids: frozenset[int] = frozenset()

    def give(self, user: User) -> None:
        """Make the droplet this user's, as if they had brought it up; another one where it is gone."""
        if not self.ids or not self.ids <= {one["id"] for one in droplets_of(self._cloud)}:
            shutil.rmtree(self._home, ignore_errors=True)
            (self._home / "work").mkdir(parents=True)
            User(home=self._home, cwd=self._home / "work", cloud=self._cloud).does("up")
            self.ids = frozenset(one["id"] for one in droplets_of(self._cloud))
        shutil.copytree(self._home, user.home, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def standing(sandbox: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Standing:
    return Standing(sandbox, tmp_path_factory.mktemp("standing") / "home")


@pytest.fixture
def user(sandbox: dict[str, str], standing: Standing, make_user: Callable[[dict[str, str]], User]) -> Iterator[User]:
    """Give a user of the session's sandbox, whose droplets are gone afterwards."""
    someone = make_user(sandbox)
    yield someone
    destroy_all(sandbox, but=standing.ids)


@pytest.fixture
def one(user: User, standing: Standing) -> User:
    """Give a user who has one droplet."""
    standing.give(user)
    return user


@pytest.fixture(params=["asyncssh", pytest.param("openssh", marks=pytest.mark.real_part("sshd", "root"))])
def user_of_either(request: pytest.FixtureRequest, make_user: Callable[[dict[str, str]], User]) -> Iterator[User]:
    """Give a user of each kind of droplet in turn."""
    name = "sandbox" if request.param == "asyncssh" else "openssh_sandbox"
    cloud = request.getfixturevalue(name)
    someone = make_user(cloud)
    yield someone
    destroy_all(cloud)
