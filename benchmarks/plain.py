"""What `reading.py` compares with. A file of its own, so that its processes load h5py and nothing else."""

from __future__ import annotations

from pathlib import Path

import h5py


def by_h5py(paths: list[Path]) -> None:
    """Read and inflate all samples of tokens, nothing more."""
    for path in paths:
        with h5py.File(path) as file:
            for stream in ("latent", "text"):
                if stream in file:
                    file[stream]["samples"][:]


def main(paths: list[str]) -> None:
    by_h5py([Path(path) for path in paths])


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
