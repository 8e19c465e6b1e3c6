"""Commands for datasets, feature classifiers and reference statistics."""

from argparse import Namespace

from edm.commands.common import (
    Commands,
    check_planned,
    count,
    counted,
    features_options,
    from_params,
    load_params,
    machine,
    made_from,
    processes,
    say,
    threads,
    whole,
)
from edm.data.prepare import SOURCES
from edm.errors import UserError
from edm.files.hashes import sha256_file
from edm.metrics import INCEPTION
from edm.tracking.counting import counted_batches


def add(command: Commands) -> None:
    sub = command(
        "prepare", prepare, "convert a data source to a dataset archive (zip of PNG images)",
        "Convert a data source to a dataset archive. The command checks the files against the paper's numbers, or "
        "against the options below. An interrupted run resumes.",
    )  # fmt: skip
    sub.add_argument("output", help="archive to write, such as data/digits.zip")
    sub.add_argument("--source", help=f"kind of source: {', '.join(SOURCES)}")
    sub.add_argument(
        "--input", nargs="+", metavar="PATH", help="raw file or folder, if the source needs one; or several zips"
    )
    sub.add_argument("--dataset", help="instead: dataset of params.yaml, which states source, path and all below")
    sub.add_argument("--resolution", type=whole, help="crop to the short side and resize to this (Lanczos)")
    sub.add_argument("--channels", type=whole, help="1 (grey) or 3 (grey is repeated to RGB)")
    sub.add_argument("--images", type=whole, help="number of images to expect")
    sub.add_argument("--classes", type=whole, help="number of classes to expect; 0 omits labels")
    sub.add_argument("--source-size", type=whole, help="expected side of the raw images, before resizing")
    sub.add_argument(
        "--checksum", metavar="MD5", help="MD5 of the CIFAR-10 tarball (default: the published one); none: any"
    )
    sub.add_argument("--split", choices=("train", "test"), help="part of the source; of a folder, that subfolder")
    sub.add_argument(
        "--held-out", type=float, metavar="F", help="fraction of the images that --split test has, and others not"
    )
    sub.add_argument("--workers", type=count, help="processes to use (default: one per core)")
    from_params(sub)

    sub = command("download", download, "download a file listed under `downloads` in params.yaml")
    sub.add_argument("path", help="its path in params.yaml")
    sub.add_argument("--lock", default="downloads.lock.json", help="recorded checksums (downloads.lock.json)")
    from_params(sub)

    sub = command("made-up", made_up, "create a synthetic raw dataset, for rehearsals")
    sub.add_argument("place", metavar="output", help="file or folder to write; must not exist")
    sub.add_argument("--dataset", required=True, help="name in params.yaml")
    from_params(sub)

    sub = command("features", features, "train the classifier that provides the features of digits")
    sub.add_argument("data", help="dataset archive with labels")
    sub.add_argument("output", help="weights to write (.safetensors)")
    sub.add_argument("--seed", type=whole, default=0, help="seed of weights and order (default 0)")
    machine(sub, device=False)

    sub = command("fid-ref", fid_ref, "compute the feature statistics of a dataset, the reference for distances")
    sub.add_argument("data", help="dataset archive")
    sub.add_argument("output", help="statistics to write (.npz with mu and sigma)")
    sub.add_argument(
        "--keep-features",
        type=whole,
        metavar="N",
        help="also store the features of at most N images, which KID and precision need",
    )
    features_options(sub, INCEPTION, INCEPTION)


def prepare(args: Namespace) -> None:
    from edm.data.labels import described
    from edm.data.prepare import STATABLE, prepare

    if args.dataset:
        loaded = load_params(args)
        spec = loaded.dataset(args.dataset)
        check_planned(args, loaded.dataset_spec(args.dataset), f"dataset {args.dataset}")
    else:
        inputs = args.input if args.input is None or len(args.input) > 1 else args.input[0]
        spec = {"source": args.source, "path": inputs, "checksum": args.checksum}
        spec |= {"split": args.split, "held_out": args.held_out}
        spec |= {name: getattr(args, name) for name in STATABLE}
    if spec["source"] is None:
        raise UserError("prepare: name a source (such as digits) or a dataset of params.yaml (--dataset)")
    options = (*STATABLE, "checksum", "split", "held_out")
    stated = {name: spec[name] for name in options if spec.get(name) is not None}
    stated |= {"workers": args.workers, "made_from": made_from("prepare")}
    stated |= {"settings": {key.removeprefix("source."): spec[key] for key in spec if key.startswith("source.")}}
    result = prepare(spec["source"], args.output, spec["path"], **stated)
    say(
        f"{args.output}: {counted(result['images'], 'image')} of {result['resolution']}x{result['resolution']}, "
        f"{described(result['classes'], result['empty_classes'])}, sha256 {result['sha256'][:12]}"
    )


def features(args: Namespace) -> None:
    from edm.data.archive import read_archive
    from edm.metrics.classifier import train_classifier

    dataset = read_archive(args.data)
    if dataset.labels is None:
        raise UserError(f"{args.data}: has no labels to train a classifier with")
    threads(args.threads)
    record = train_classifier(dataset.images, dataset.labels, args.output, seed=args.seed)
    images = counted(int(record["held_out_images"]), "image")
    say(f"{args.output}: held-out accuracy {record['held_out_accuracy']:.3f} on {images}")


def fid_ref(args: Namespace) -> None:
    with processes(args.device) as place:
        from torch import from_numpy

        from edm.data.archive import count_images, some_images
        from edm.metrics.extractors import load_features
        from edm.metrics.reference import reference_statistics, save_reference
        from edm.sampling.drawing import part_of
        from edm.sampling.sample_files import in_batches

        threads(args.threads)
        images = count_images(args.data)
        own = part_of(range(images), 256, place.rank, place.size)
        batches = in_batches(from_numpy(some_images(args.data, own))) if own else ()
        batches = counted_batches(batches, args.output, len(own), place.is_first)
        extractor = load_features(args.features, args.weights, place.device, images)
        statistics, kept = reference_statistics(extractor, batches, args.keep_features, own.start, place)
        if place.is_first:
            save_reference(args.output, extractor, statistics, sha256_file(args.data), kept)
            say(f"{args.output}: {extractor.name} statistics of {counted(statistics.count, 'image')}")


def download(args: Namespace) -> None:
    """Downloads a file of the section ``downloads`` of params.yaml."""
    from edm.files.download import download, pin

    entries = load_params(args).downloads
    if args.path not in entries:
        raise UserError(f"{args.path}: not among the downloads of {args.params}; it has {', '.join(entries)}")
    entry = entries[args.path]
    if entry["url"] is None:
        raise UserError(f"{args.path}: fetch it by hand and put it there: {entry.get('note', 'it has no url')}")
    download(entry["url"], args.path, sha256=entry.get("sha256"), md5=entry.get("md5"))
    sha256 = sha256_file(args.path)
    pin(args.lock, args.path, sha256)
    say(f"{args.path}: sha256 {sha256[:12]}")


def made_up(args: Namespace) -> None:
    """Creates a synthetic raw dataset, for rehearsals."""
    from edm.data.prepare.made_up import made_up

    loaded = load_params(args)
    spec = loaded.dataset(args.dataset)
    check_planned(args, loaded.dataset_spec(args.dataset), f"dataset {args.dataset}")
    if not spec.get("made_up"):
        raise UserError(f"dataset {args.dataset}: params.yaml does not say made_up; its source is real")
    size = {"side": spec["source_size"]} if "source_size" in spec else {}
    size |= {"classes": spec["classes"]} if spec["source"] in ("imagenet", "folder") else {}
    made_up(spec["source"], args.place, spec["made_up"], **size)
    say(f"{args.place}: {counted(spec['made_up'], 'made-up image')}")
