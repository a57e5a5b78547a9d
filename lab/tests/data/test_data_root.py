"""The data root: which folder it is, what is found where, and the status of every data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from equirelax_lab.data import data_root, find, nbody, status
from equirelax_lab.data.root import cache_root, command, named_root, search_roots, writable_root

from equirelax.errors import DataError


def test_explicit_then_environment_then_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_root() == tmp_path / "cache" / "equirelax"
    monkeypatch.setenv("EQUIRELAX_DATA", str(tmp_path / "configured"))
    assert data_root() == tmp_path / "configured"
    assert data_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.setenv("EQUIRELAX_DATA", "")
    assert data_root() == cache_root()
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_root() == Path.home() / ".cache" / "equirelax"


def test_find_looks_in_the_root_and_then_in_the_cache(tmp_path: Path) -> None:
    for folder in (tmp_path / "root", cache_root()):
        folder.mkdir(parents=True)
    (cache_root() / "file").touch()
    assert find("file", tmp_path / "root") == cache_root() / "file"
    (tmp_path / "root" / "file").touch()
    assert find("file", tmp_path / "root") == tmp_path / "root" / "file"
    assert search_roots(cache_root()) == [cache_root()]


def test_find_names_every_place_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find("nothing.npz", tmp_path, hint="Bake it")
    for part in (
        str(tmp_path / "nothing.npz"),
        str(cache_root() / "nothing.npz"),
        "Bake it",
        "EQUIRELAX_DATA",
    ):
        assert part in str(caught.value)


def test_made_data_go_to_the_cache_when_the_root_is_read_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert writable_root(root) == root
    assert writable_root(root / "not" / "there") == root / "not" / "there"
    root.chmod(0o555)
    assert writable_root(root) == cache_root()
    assert writable_root(root / "not" / "there") == cache_root()
    root.chmod(0o755)


def test_status(tmp_path: Path) -> None:
    rows = {row.name: row for row in status(tmp_path)}
    assert not any(row.available for row in rows.values())
    for split in nbody.SPLITS:
        for suffix in (".npz", ".json"):
            file = (tmp_path / nbody.relative_path(split)).with_suffix(suffix)
            assert not {row.name: row for row in status(tmp_path)}["nbody"].available
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    row = {row.name: row for row in status(tmp_path)}["nbody"]
    assert row.location == tmp_path / "nbody" / "charged-component-seed0"
    assert row.how_to_get == f"equirelax data make nbody --data {tmp_path}"
    assert not rows["mocap-run"].available
    how = {row.name: row.how_to_get for row in status()}
    assert how["nbody"] == "equirelax data make nbody"
    assert how["mnist"].startswith("equirelax data get mnist, or put")
    assert rows["mnist"].how_to_get.startswith(f"equirelax data get mnist --data {tmp_path}, or put")


def test_a_root_that_is_named_has_to_exist(tmp_path: Path) -> None:
    (cache_root() / "there").mkdir(parents=True)
    assert named_root(None) is None
    assert named_root(tmp_path) == tmp_path
    for missing in (tmp_path / "nowhere", str(tmp_path / "no where")):
        for read in (named_root, lambda root: find("there", root)):
            with pytest.raises(DataError, match=rf"{missing} does not exist.*--data"):
                read(missing)
    assert find("there", tmp_path) == cache_root() / "there"
    assert command("equirelax data make nbody", "a b") == "equirelax data make nbody --data 'a b'"
