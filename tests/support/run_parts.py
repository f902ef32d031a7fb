"""Finished parts of a run in tests: what they hold, and the layout of older versions."""

import json
import shutil
import zipfile

from longgame.audit.parts import FinishedPart, finished_parts
from longgame.audit.run import Run


def selection(folder, trial, stage):
    """The selection table of a trial's stage."""
    return Run.open(folder).selection(trial, stage)


def as_older_version(run, change=lambda mark: mark):
    """Lay out every part of a run as a folder, as older versions did, and change the entries of the marks."""
    for part in finished_parts(run):
        folder = part.path.with_suffix("")
        with zipfile.ZipFile(part.path) as archive:
            archive.extractall(folder)
        for beside in folder.parent.glob(f"{folder.name}.*/"):
            beside.rename(folder / beside.suffix[1:])
        part.path.unlink()
        mark = folder / "done.json"
        mark.write_text(json.dumps(change(json.loads(mark.read_text()))))


def rewrite(path, name, content):
    """Exchange a file of a part, and nothing else of it."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in {**files, name: content}.items():
            archive.writestr(file, data)


def remove(folder, stage):
    """Delete a trial's stage."""
    part = FinishedPart.find(folder, f"stage-{stage}")
    shutil.rmtree(part.folder("learner"), ignore_errors=True)
    part.path.unlink()
