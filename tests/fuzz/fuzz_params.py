"""Mutations of params files, through all that `edm plan` and Snakemake do before a job starts.

    python tests/fuzz/fuzz_params.py --count 2000 --seed 1

One input in fifty is the project's own params.yaml, with one change; one in ten is a configuration for `edm train
--config`; the others are a small file of all sections.
"""

import copy
import functools
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import yaml
from door import command

from edm import params
from edm.chain.jobs import Chain
from edm.chain.plan import as_text, make_plan
from edm.chain.rules import RULES
from edm.cli import main
from edm.config import TrainingConfig
from edm.report.captions import Captions

ROOT = Path(__file__).parents[2]
SMALL = """
run: [e, both]
tracking: {uri: "sqlite:///mlruns/mlflow.db"}
downloads:
  downloads/raw.tar: {url: "https://example.org/raw.tar", md5: "00000000000000000000000000000000"}
  downloads/hand.pkl: {url: null}
pretrained: {mine: {path: downloads/hand.pkl, like: e/vp-A}}
datasets:
  d: {source: folder, path: raw, resolution: 8, channels: 1, classes: 2}
  m: {source: cifar10, path: runs/made-up/m.tar, resolution: 8, channels: 3, classes: 10, made_up: 20}
experiments:
  e:
    title: An experiment
    dataset: d
    features: pixels
    more_features: {digits-classifier: null}
    metrics: [kid]
    base: &base {model_channels: 8, num_blocks: 1, attn_resolutions: [], channel_mult: [1, 2], duration: 0.01,
                 batch_size: 16, snapshot_every: 0.002, learning_rate: 1.0e-3, ema_halflife: 0.1}
    columns: {vp: {}, ve: {architecture: ncsnpp}}
    ladder: {A: {preconditioning: vp, loss: vp}, B: {augment: 0.1}}
    models: {leak: {from: vp-A, augment: 1}, published: {pretrained: mine}}
    override: {dropout: 0.1}
    choose: {grid: ladder, images: 8, confirm: 2}
    sampling: {images: 16, repeats: 2, block: 8, one_job_per: point, shards: 2, gpus: 0}
    training: {gpus: 0, state_every: 60}
    steps: [2, 4]
    grids:
      ladder: {models: all, num_steps: 8}
      heun: {models: [vp-A, published], num_steps: [4, 8], rho: [3, 7]}
      churn: {models: {vp-B: {S_noise: 1.01}}, num_steps: 6, S_churn: [0, 10], settings_from: best}
    searches: {best: {models: [vp-B], num_steps: 8, over: {S_min: [0, 0.1], S_max: [50, null]}, images: 8}}
    sheets: {shown: {models: all, num_steps: 8, images: 8}}
    analyses:
      leakage: {kind: leakage, models: [leak], images: 8}
      truncation: {kind: truncation, models: [vp-A], num_steps: 6, rhos: [3, 7], substeps: 4, samples: 8}
      degradation: {kind: degradation, models: [vp-A], sigmas: [1, smallest], repetitions: [0, 2], images: 4}
    tables:
      table2: {kind: configurations, title: Configurations, grid: ladder}
      samplers: {kind: samplers, title: Samplers, nfe: of the best, rows: {Heun: heun}, note: A note.}
      found: {kind: settings, title: Found, columns: ["vp-B:best"]}
      networks: {kind: networks, title: Networks, columns: {A: vp-A}}
    figures:
      steps: {kind: curve, over: nfe, lines: {"NFE, A": "vp-A:heun"}, title: Steps}
      levels: {kind: levels}
      images: {kind: sheets, rows: {one: {A: "vp-A:shown"}}, images: 4}
      noisy: {kind: noisy, dataset: d, images: 2}
  other: {extends: e, base: {duration: 0.02}, tables: {found: null}}
reports:
  both:
    title: Both
    scale: 0.5
    experiments: {one: e, two: other}
    tables: {cells: {kind: cells, title: Cells, nfe: within 3 %, rows: {A: {FID: "one/vp-A:heun"}}}}
    figures: {steps: {kind: curve, over: nfe, lines: {A: "two/vp-A:heun"}}}
"""
NUMBERS = [0, -1, 1, 2, 1e-300, 1e300, -1e300, 5e-324, 1e-9, 1e9, 1e15, 10**6, 10**9, 10**12, 2**31,
           2**63, 2**64, 10**30, 10**400, 16**5000, -(10**300), 0.5, 3.0, float("nan"), float("inf"),
           -float("inf"), True]  # fmt: skip
TEXTS = ["", " ", "a\n", "\n", "a b", "{title}", "{wildcards.model}", "{", "}}", "{{x}}", "$\\frac{",
         "$x$", "\\", "=1+1", "=cmd|'/C calc'!A0", "@x", "-", "<script>alert(1)</script>", "|", "`x`",
         "a/b", "../../etc/passwd", "/dev/zero", "/etc/passwd", "/tmp", "all", "train", "none", "null",
         "e\u0301", "\u00e9", "\u202ecba", "\U0001f600", "x" * 300, "é" * 130, "x" * 20_000,
         "/".join(["x" * 50] * 100), "data/d.zip", "models/e/vp-A/model.safetensors",
         "runs/made-up/m.tar", "1e400", "1:1:1", "2024-99-99", "~", "*", "&a", "vp-A", "e", "both", "d",
         "only", ".", "..", "a.", "%s", "%(x)s", "'", '"', "\t", "\0", "\x1b[2J", "\u2028", "a=b,c=d",
         "http://["]  # fmt: skip
TAGS = ["!!map ", "!!seq ", "!!str ", "!!int ", "!!float ", "!!bool ", "!!set ", "!!omap ", "!!pairs ", "!!binary ",
        "!!null ", "!!timestamp ", "!!merge ", "!!python/name:os.system ", "!mine ", "! ", "&a ", "*a ",
        "<<: "]  # fmt: skip


def places(value, path=()):
    """The paths of all values inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def inside(raw, path):
    for key in path:
        raw = raw[key]
    return raw


def put(raw, path, value):
    inside(raw, path[:-1])[path[-1]] = value


# Mutators of the data ------------------------------------------------------------------------------------------------


def another_value(draw, raw, path):
    odd = [None, [], {}, [[]], {"": None}, {"a": {"b": [1]}}, [1, "a", None], *NUMBERS, *TEXTS]
    put(raw, path, copy.deepcopy(draw.choice(odd)))


def another_number(draw, raw, path):
    numbers = [p for p in places(raw) if type(inside(raw, p)) in (int, float)]
    put(raw, draw.choice(numbers), draw.choice(NUMBERS))


def another_text(draw, raw, path):
    texts = [p for p in places(raw) if isinstance(inside(raw, p), str)]
    put(raw, draw.choice(texts), draw.choice(TEXTS))


def another_name(draw, raw, path):
    """A key is renamed, at its place."""
    owner = inside(raw, path[:-1])
    if isinstance(owner, dict):
        renamed = {draw.choice(TEXTS) if key == path[-1] else key: value for key, value in owner.items()}
        owner.clear()
        owner.update(renamed)


def deletion(draw, raw, path):
    del inside(raw, path[:-1])[path[-1]]


def transplant(draw, raw, path):
    """A value is put where another one was."""
    put(raw, path, copy.deepcopy(inside(raw, draw.choice(list(places(raw))))))


def addition(draw, raw, path):
    """A key of the schema, where it may or may not belong."""
    owner = inside(raw, path)
    if isinstance(owner, dict):
        entry = draw.choice([one for one in params.schema()["$defs"].values() if one.get("properties")])
        values = [*NUMBERS, *TEXTS, ["vp-A"], [1, 2], {"vp-A": None}, "all", "truncation", "degradation", "leakage"]
        owner[draw.choice(list(entry["properties"]))] = copy.deepcopy(draw.choice(values))


def long_list(draw, raw, path):
    """A product of long lists in a grid, or a long list anywhere."""
    count = draw.choice([10, 100, 1000, 10_000])
    if draw.random() < 0.7:
        path = ("experiments", "e" if "e" in raw["experiments"] else "digits", "grids")
        grid = draw.choice(list(inside(raw, path).values()))
        for key in draw.sample(["num_steps", "rho", "S_noise", "S_churn", "alpha", "sigma_max"], draw.randint(1, 6)):
            grid[key] = [1 + number for number in range(count)]
    else:
        put(raw, path, [1 + number for number in range(count)])


def many_entries(draw, raw, path):
    """An entry, many times under other names."""
    owner = inside(raw, path[:-1])
    if isinstance(owner, dict):
        for number in range(draw.choice([20, 200, 2000])):
            owner[f"{str(path[-1])[:40]}{number}"] = owner[path[-1]]


def extensions(draw, raw, path):
    """Experiments that extend each other, in a row or a ring."""
    section = draw.choice(["experiments", "reports"])
    first, count = next(iter(raw[section])), draw.choice([2, 50, 1500])
    raw[section] |= {f"x{n}": {"extends": f"x{n - 1}" if n else first} for n in range(count)}
    if draw.random() < 0.5:
        raw[section]["x0"] = {"extends": f"x{count - 1}"}


# Mutators of the text ------------------------------------------------------------------------------------------------


def tagged(draw, text):
    at = draw.choice([place + 2 for place in range(len(text)) if text.startswith(": ", place)])
    return text[:at] + draw.choice(TAGS) + text[at:]


def bytes_changed(draw, text):
    data = bytearray(text.encode())
    for _ in range(draw.choice([1, 1, 3, 10])):
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + draw.choice([1, 5, 100])]
        elif kind == 2:
            data[at:at] = draw.choice([b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\t", b"\n", b"{", b"[" * 200,
                                       b'"', b"# ", b"---\n", b"...\n", b"%YAML 1.1\n", b"\xc2\x85",
                                       b"- "])  # fmt: skip
        else:
            start = draw.randrange(len(data))
            data[at:at] = data[start : start + draw.choice([10, 100, 1000])]
        data = data or bytearray(b"x")
    return bytes(data)


def bomb(draw, text):
    """Anchors that grow by aliases or by merges, below a key of the file."""
    levels, width = draw.choice([2, 5, 12, 100]), draw.choice([2, 9, 100])
    merge = draw.random() < 0.6
    lines = ["x0: &x0 {a: 1, b: 2}"]
    for n in range(1, levels):
        many = ", ".join([f"*x{n - 1}"] * width)
        lines.append(f"x{n}: &x{n} {{<<: [{many}], k{n}: 1}}" if merge else f"x{n}: &x{n} [{many}]")
    return "\n".join(lines) + "\n" + text


def scalar(draw, text):
    """A long or deep value for the key `run`."""
    values = ["[" * draw.choice([10, 49, 60, 100_000]), "9" * draw.choice([20, 400, 5000]), "0x" + "f" * 5000, "-.inf",
              ":".join(["59"] * draw.choice([3, 500, 50_000])), '"\\ud800"', "'" + "x" * 2_000_000 + "'", "&a [*a]",
              "&a {<<: *a}", "? [a]\n: b", "1e400", "0b" + "1" * 20_000, "2001-12-14t21:59:43.10+99:99",
              "0001-01-01t00:00:00+14:00", "=", "<<", "[<<: 1]", "- - - a", "|\n  x", '"\\0"']  # fmt: skip
    return text + "\nzzz: " + draw.choice(values) + "\n"


OF_DATA = [another_value, another_value, another_number, another_number, another_text, another_text, another_name,
           deletion, transplant, addition, long_list, many_entries, extensions]  # fmt: skip
OF_TEXT = [tagged, bytes_changed, bomb, scalar]


def mutated(name):
    """The params file of an input's name, and its mutator: "3:17" is input 17 of seed 3."""
    draw = random.Random(name)
    whole = draw.random() < 0.02
    text = (ROOT / "params.yaml").read_text() if whole else SMALL
    if draw.random() < 0.3:
        change = draw.choice(OF_TEXT)
        text = change(draw, text)
        return text if isinstance(text, bytes) else text.encode(errors="surrogatepass"), change.__name__
    raw, names = copy.deepcopy(_loaded(text)), []
    for _ in range(1 if whole else draw.choice([1, 1, 1, 2, 4])):
        change = draw.choice(OF_DATA)
        names.append(change.__name__)
        change(draw, raw, draw.choice(list(places(raw))))
        if not isinstance(raw.get("experiments"), dict) or not all(
            isinstance(one, dict) and isinstance(one.get("grids"), dict) for one in raw["experiments"].values()
        ) or not isinstance(raw.get("reports"), dict):  # fmt: skip
            break
    return _dumped(raw).encode(), "+".join(names)


@functools.cache
def _loaded(text):
    return yaml.safe_load(text)


_yaml = functools.partial(yaml.dump, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)


def _dumped(raw, write=_yaml):
    """The text of data that may hold numbers of thousands of digits."""
    sys.set_int_max_str_digits(0)
    try:
        return write(raw)
    finally:
        sys.set_int_max_str_digits(4300)


def plan_all(path):
    """All that happens to a params file before a job starts."""
    chain = Chain(params.load(path, whole=True))
    for name in chain.params.run:
        as_text(make_plan(chain.params, name, everything=True), gpus=1)
    for job in chain.jobs():
        chain.specification(job)
        chain.raw_sources(job)
    for stage in dict.fromkeys(rule.stage for rule in RULES.values()):
        for name in chain.experiments:
            chain.steps(stage, name)
    chain.downloads_for(chain.params.run)
    captions = Captions(chain)
    for report in chain.reports.values():
        for name in (*report.tables, *report.figures):
            captions.title(report.name, name)


def configuration(name):
    """`edm train --config`, of a configuration with changed values."""
    draw = random.Random(name)
    raw = TrainingConfig(resolution=8, channels=1, classes=2).to_dict()
    for _ in range(draw.choice([1, 1, 3])):
        draw.choice([another_value, another_number, another_name, deletion])(draw, raw, (draw.choice(list(raw)),))
    Path("config.json").write_text(_dumped(raw, json.dumps), encoding="utf-8")
    return lambda: main(["train", "--config", "config.json", "--dry-run"])


def inputs(count, seed):
    """In a folder of their own, which is the current one while they are read."""
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number in range(count):
                if number % 10 == 9:
                    yield f"{seed}:{number} configuration", configuration(f"{seed}:{number}")
                    continue
                content, kind = mutated(f"{seed}:{number}")
                Path("params.yaml").write_bytes(content)
                yield f"{seed}:{number} {kind}", lambda: plan_all("params.yaml")
        finally:
            os.chdir(home)


if __name__ == "__main__":
    sys.exit(command(inputs, __doc__))
