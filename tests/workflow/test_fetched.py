"""Raw data and a published model that are fetched when they are first needed: one call, through to the table."""

import re
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretended import ROOT, planned
from test_small_chain import snakemake

pytestmark = pytest.mark.slow

CHECKPOINT = ROOT / "tests" / "fixtures" / "checkpoints" / "score_sde-vp.pth"
PARAMS = """
run: [small]
downloads:
  downloads/pictures.zip: {{url: "{at}/pictures.zip"}}
  downloads/published.pth: {{url: "{at}/{checkpoint}"}}
datasets:
  made: {{source: folder, path: downloads/pictures.zip, resolution: 16, channels: 3, classes: 0}}
pretrained:
  found: {{path: downloads/published.pth, resolution: 16}}
experiments:
  small:
    dataset: made
    features: pixels
    base: {{conditional: false, model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1],
           duration: 6.4e-5, batch_size: 16, level_samples: 4}}
    columns: {{vp: {{architecture: ddpmpp}}}}
    ladder: {{A: {{lr_rampup: 0}}}}
    models: {{old: {{pretrained: found}}}}
    sampling: {{images: 16, block: 16}}
    grids: {{few: {{models: all, num_steps: 2}}}}
    tables: {{few: {{kind: samplers, title: Few, nfe: of the best, columns: [vp-A, old], rows: {{Heun: few}}}}}}
"""


@pytest.fixture
def address(tmp_path):
    """A server on this machine with a zip of pictures and the checkpoint."""
    place = tmp_path / "served"
    place.mkdir()
    shutil.copy(CHECKPOINT, place)
    with zipfile.ZipFile(place / "pictures.zip", "w") as archive:
        for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(picture := BytesIO(), "png")
            archive.writestr(f"{number}.png", picture.getvalue())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=place))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_fetched_in_a_call_is_used_in_it(address, tmp_path, monkeypatch):
    folder = tmp_path / "chain"
    folder.mkdir()
    (folder / "params.yaml").write_text(PARAMS.format(at=address, checkpoint=CHECKPOINT.name))
    monkeypatch.chdir(folder)
    targets = [f"results/small/tables/few{suffix}" for suffix in (".md", ".csv", ".tex", ".html")]
    direct = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    done = snakemake(folder, targets[0], **direct)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\d+\.\d\d", Path(targets[0]).read_text())) >= 2
    assert planned(targets[0]) == []
    assert "Nothing to be done" in snakemake(folder, targets[0], **direct).stderr
