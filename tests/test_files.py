"""Files that are there as a whole or not at all."""

import os
import subprocess
import sys
import threading

import pytest

from rethink_jax import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    files.write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False])
def test_of_many_writers_one_wins(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    path, won, ready = tmp_path / "x", [], threading.Barrier(8)

    def write(number):
        ready.wait()
        if files.write_once(path, f"by {number}"):
            won.append(number)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == f"by {won[0]}" and len(won) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    """As on NFS: the link was made, and the repeated request finds it there."""
    link = os.link
    monkeypatch.setattr(os, "link", lambda a, b: (link(a, b), link(a, b)))
    assert files.write_once(tmp_path / "x", "mine")
    assert not files.write_once(tmp_path / "x", "other")


def test_only_parts_of_dead_processes_of_this_machine_are_removed(tmp_path, monkeypatch):
    code = "import sys; from pathlib import Path; from rethink_jax import files\n"
    code += "files.part_of(Path(sys.argv[1])).touch(); files.part_of(Path(sys.argv[1])).mkdir()"
    subprocess.run([sys.executable, "-c", code, tmp_path / "dead"], check=True)
    mine = files.part_of(tmp_path / "mine")
    mine.touch()
    (tmp_path / ".hidden").touch()
    with monkeypatch.context() as patch:
        patch.setattr(files, "machine_id", lambda: "0" * 8)
        files.remove_parts(tmp_path)
        assert len(list(tmp_path.iterdir())) == 4
    files.remove_parts(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {mine.name, ".hidden"}
