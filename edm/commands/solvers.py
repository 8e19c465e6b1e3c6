"""The command that measures the orders of solvers on data with a known solution."""

from argparse import Namespace
from typing import Any

from edm.commands.common import Commands, multistep_options, whole
from edm.config import DISCRETIZATIONS, SamplerConfig

#: The settings that replace those of the named solvers.
_SETTINGS = ("predicts", "over", "order", "corrector", "discretization", "rho")


def add(command: Commands) -> None:
    sub = command(
        "orders", orders, "measure the orders of solvers on a mixture of Gaussians",
        "Measure the orders of solvers, without a network: errors on a mixture of two Gaussians, whose flow is known, "
        "from sigma 5 to 0.2. The order follows from the two largest numbers of steps. Without names: all solvers.",
    )  # fmt: skip
    sub.add_argument("solvers", nargs="*", metavar="SOLVER", help="euler, heun, multistep, lms, dpmpp-3m, ipndm, …")
    sub.add_argument("--steps", nargs="+", type=whole, metavar="N", help="numbers of steps (default 64 128 256 512)")
    multistep_options(sub)
    sub.add_argument("--discretization", help=f"equal steps of: {', '.join(DISCRETIZATIONS)} (default: the solver's)")
    sub.add_argument("--rho", type=float, metavar="X", help="exponent of the edm time steps (default 7)")


def orders(args: Namespace) -> None:
    from edm.analysis.orders import NAMED, STEPS, measure_order

    steps = sorted(set(args.steps or STEPS))
    stated: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    configs = {name: SamplerConfig.from_dict({"solver": name, **NAMED.get(name, {}), **stated})
               for name in args.solvers or NAMED}  # fmt: skip
    found = {name: measure_order(config, steps) for name, config in configs.items()}  # before a line is printed
    heads = "".join(f"{'error, ' + str(count):>13}" for count in steps)
    print(f"{'solver':16}  {'steps':7}  claimed  measured{heads}     NFE")
    for name, one in found.items():
        errors = "".join(f"{error:13.2e}" for error in one.errors.values())
        print(
            f"{name:16}  {configs[name].discretization:7}  {one.claimed:7}  {one.measured:8.2f}{errors}  {one.nfe:6,}"
        )
