"""Datasets, and what is made from them alone."""

from argparse import Namespace

from edm import params
from edm.commands.common import made_from, processes, say, threads
from edm.errors import UserError
from edm.files.writing import sha256_file


def prepare(args: Namespace) -> None:
    from edm.data.prepare import STATABLE, prepare

    if args.dataset:
        spec = params.load(args.params).dataset(args.dataset)
        params.check_spec(spec, args.expect, f"dataset {args.dataset}")
    else:
        inputs = args.input if args.input is None or len(args.input) > 1 else args.input[0]
        spec = {"source": args.source, "path": inputs, "checksum": args.checksum}
        spec |= {name: getattr(args, name) for name in STATABLE}
    if spec["source"] is None:
        raise UserError("prepare: name a source (such as digits) or a dataset of params.yaml (--dataset)")
    stated = {name: spec[name] for name in (*STATABLE, "checksum") if spec.get(name) is not None}
    stated |= {"workers": args.workers, "made_from": made_from("prepare")}
    result = prepare(spec["source"], args.output, spec["path"], **stated)
    say(
        f"{args.output}: {result['images']} images of {result['resolution']}x{result['resolution']}, "
        f"{result['classes']} classes, sha256 {result['sha256'][:12]}"
    )


def features(args: Namespace) -> None:
    from edm.data.archive import read_archive
    from edm.metrics.classifier import train_classifier

    dataset = read_archive(args.data)
    if dataset.labels is None:
        raise UserError(f"{args.data}: has no labels to train a classifier with")
    threads(args.threads)
    record = train_classifier(dataset.images, dataset.labels, args.output, seed=args.seed)
    say(f"{args.output}: held-out accuracy {record['held_out_accuracy']:.3f} on {record['held_out_images']} images")


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
        extractor = load_features(args.features, args.weights, place.device, images)
        statistics, kept = reference_statistics(extractor, batches, args.keep_features, own.start, place)
        if place.is_first:
            save_reference(args.output, extractor, statistics, sha256_file(args.data), kept)
            say(f"{args.output}: {extractor.name} statistics of {statistics.count} images")


def download(args: Namespace) -> None:
    """A file of the section ``downloads`` of params.yaml."""
    from edm.files.download import download, pin

    entries = params.load(args.params).downloads
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
    """A made-up raw source, for rehearsals."""
    from edm.data.prepare.made_up import made_up

    spec = params.load(args.params).dataset(args.dataset)
    params.check_spec(spec, args.expect, f"dataset {args.dataset}")
    if not spec.get("made_up"):
        raise UserError(f"dataset {args.dataset}: params.yaml does not say made_up; its source is real")
    size = {"side": spec["source_size"]} if "source_size" in spec else {}
    size |= {"classes": spec["classes"]} if spec["source"] in ("imagenet", "folder") else {}
    made_up(spec["source"], args.output, spec["made_up"], **size)
    say(f"{args.output}: {spec['made_up']} made-up images")
