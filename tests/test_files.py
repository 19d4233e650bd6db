"""Files that are either whole or not there, and folders that one process has for itself."""

import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from command_runs import World, call

from splade_lit import fit
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_free, hold_folder, replace_text, whole_file, whole_folder


def test_text_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    replace_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    replace_text(path, "other")
    assert path.read_text() == "other"
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with whole_file(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
        assert temporary.parent.parent == tmp_path
    assert path.read_text() == "after"

    with suppress(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for text in ("first", "second"):
        with whole_folder(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "a.txt").write_text(text)
            assert path.exists() == (text == "second")
        assert (path / "inner" / "a.txt").read_text() == text
        assert list(path.parent.iterdir()) == [path]
    with suppress(KeyboardInterrupt), whole_folder(path) as temporary:
        (temporary / "b.txt").write_text("half")
        raise KeyboardInterrupt
    assert [one.name for one in path.iterdir()] == ["inner"]
    assert list(path.parent.iterdir()) == [path]


_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from splade_lit.core.files import whole_folder
with whole_folder(Path(sys.argv[1])) as temporary:
    (temporary / "a.txt").write_text("half")
    if sys.argv[2] == "between two names":
        Path.rename = lambda old, new: (os.rename(old, new), os.kill(os.getpid(), signal.SIGKILL))
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["while it writes", "between two names"])
def test_a_killed_process_leaves_the_folder_of_before_and_nothing_for_long(tmp_path: Path, when: str) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a.txt").write_text("before")
    (tmp_path / ".folder-settings").mkdir()  # of somebody else
    subprocess.run([sys.executable, "-c", _IS_KILLED, str(path), when], check=False, timeout=300)
    assert len(list(tmp_path.iterdir())) == (3 if when == "while it writes" else 2)
    with suppress(KeyboardInterrupt), whole_folder(path) as temporary:
        assert {one.name for one in tmp_path.iterdir()} == {"folder", ".folder-settings", temporary.parent.name}
        assert (path / "a.txt").read_text() == "before"
        with whole_folder(path) as other:  # two at once: what is being written stays
            (other / "a.txt").write_text("other")
        assert temporary.is_dir()
        raise KeyboardInterrupt
    assert (path / "a.txt").read_text() == "other"
    assert {one.name for one in tmp_path.iterdir()} == {"folder", ".folder-settings"}


@pytest.mark.parametrize("name", ["file/a.txt", "folder"])
def test_what_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path / name} cannot be written .*; free space or choose another folder"):
        replace_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


_HOLDS = """
import sys
from pathlib import Path
from splade_lit.core.files import hold_folder
held = hold_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_is_for_one_process_until_it_ends_in_whatever_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    for take in (hold_folder, check_free):
        with pytest.raises(UserError, match=f"{folder} is being written by another process"):
            take(folder)
    other.kill()
    other.wait()
    check_free(folder)
    hold_folder(folder).release()
    check_free(folder)


def test_no_second_run_writes_to_a_folder(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    held = hold_folder(run)
    outcome = call(fit.main, "--config", world.config(run, {"trainer.callbacks": None}))
    assert outcome.code == 2
    assert outcome.errors[0].startswith(f"error: {run} is being written by another process")
    assert [path.name for path in run.iterdir()] == [".lock"]
    held.release()
    assert call(fit.main, "--config", world.config(run, {"trainer.callbacks": None})).code == 0
    check_free(run)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as temporary:
        shutil.copytree(temporary.parent, tmp_path / f"{temporary.parent.name[:-8]}abcd1234")
        raise KeyboardInterrupt
    (tmp_path / ".my-database").mkdir()
    (tmp_path / ".my-database" / "rows.txt").write_text("mine")
    assert len(list(tmp_path.iterdir())) == 2
    hold_folder(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".my-database"]
