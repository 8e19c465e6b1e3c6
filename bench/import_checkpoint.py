"""Time and memory to import a checkpoint of the EDM authors' size.

    python bench/import_checkpoint.py [MODEL_CHANNELS]

Writes a pickle in the authors' format with random weights (61.8 million parameters at the default of 128 channels:
DDPM++ for 64x64, configurations C to F, 248 MB) into a temporary folder, converts it in a separate process, and prints
the seconds and the peak resident memory of ``edm.foreign.convert``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small_files
from edm.design.preconditioning import EDMPreconditioning
size = {"resolution": 64, "channel_mult": (1, 2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,), "augment_dim": 9}
denoiser = small_files.make("ddpmpp", EDMPreconditioning(), model_channels=int(sys.argv[3]), **size)
small_files.authors_pickle(Path(sys.argv[2]), denoiser)
"""
CONVERT = """
import json, os, resource, sys, time
begun = time.monotonic()
import torch
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
torch_memory = memory()
from edm.foreign import convert
start = time.monotonic()
imported = convert(sys.argv[1], sys.argv[2])
print(json.dumps({
    "file (MB)": os.path.getsize(sys.argv[1]) // 10**6,
    "parameters": sum(p.numel() for p in imported.denoiser.parameters()),
    "seconds": round(time.monotonic() - start, 2),
    "seconds with the import of torch": round(time.monotonic() - begun, 2),
    "peak memory (MiB)": memory(),
    "of which torch itself (MiB)": torch_memory,
}, indent=1))
"""


def main(model_channels: str) -> int:
    """Runs both steps in separate processes: a child's peak memory starts at its parent's."""
    files = Path(__file__).parents[1] / "tests" / "foreign"
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "model.pkl", Path(folder) / "out.safetensors"
        subprocess.run([sys.executable, "-c", WRITE, files, source, model_channels], check=True)
        return subprocess.run([sys.executable, "-c", CONVERT, source, out]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "128"))
