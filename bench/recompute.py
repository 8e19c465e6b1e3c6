"""What does `training: {recompute: true}` save, and what does it cost?

    python bench/recompute.py [--models EXPERIMENT/MODEL ...] [--batch N] [--rounds N] [--output FILE]

Forward and backward pass of a network of params.yaml in float32 on the CPU, without and with recompute, by turns. Kept:
bytes of all tensors that the backward pass needs, without the weights, per image: on a GPU they are most of the memory.
Time: processor time of both passes with one thread; "times": over that without recompute. Asserts equal gradients.
"""

import argparse
import sys
import time
from typing import Any

from common import by_turns, report, summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cifar10-cond/vp-F", "imagenet/adm-E"])
    parser.add_argument("--batch", type=int, default=2, help="images (default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="JSON file (default bench/results/recompute.json)")
    args = parser.parse_args()
    rows = [row for model in args.models for row in measured(model, args.batch, args.rounds)]
    report("recompute", "What does recompute save, and what does it cost?", rows, vars(args), args.output)
    return 0


def measured(model: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row without recompute, and one with it."""
    import torch
    from common import ROOT

    from edm import params
    from edm.models import building

    torch.set_num_threads(1)
    experiment, _, name = model.partition("/")
    config = params.load(str(ROOT / "params.yaml"), whole=True).experiment(experiment).models[name]
    torch.manual_seed(0)
    net = building.build(config).train()
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    images = torch.randn(batch, config.channels, config.resolution, config.resolution)
    labels = torch.zeros(batch, dtype=torch.int64) if config.conditional else None
    kept: dict[bool, int] = {}
    gradients: dict[bool, torch.Tensor] = {}

    def passes(recompute: bool) -> float:
        net.network.recompute, seen = recompute, {}
        torch.manual_seed(1)  # dropout

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        begun = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = net(images, torch.full((batch,), 0.5), labels)
        out.square().sum().backward()
        spent = time.process_time() - begun
        kept[recompute] = sum(seen.values())
        gradients[recompute] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        net.zero_grad()
        return spent

    passes(False)  # the first is slower
    spent = by_turns({"no": lambda: passes(False), "yes": lambda: passes(True)}, rounds)
    assert torch.equal(gradients[False], gradients[True])
    plain = summary(spent["no"])["median"]
    return [{"model": model, "recompute": name, "kept per image (MiB)": round(kept[name == "yes"] / batch / 2**20, 1),
             "seconds": summary(seconds)["median"], "times": summary(seconds)["median"] / plain, "rounds": rounds}
            for name, seconds in spent.items()]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
