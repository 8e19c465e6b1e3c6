"""A laboratory that replaces everything: one file per kind of part, and a small params.yaml that uses them all."""

import textwrap

import yaml
from lab import PAGE

PARTS = {
    "source": """
        import numpy as np

        @edm.register("source", "lab-bars")
        def bars(path, *, count: int = 60):
            images = np.zeros((count, 1, 8, 8), dtype=np.uint8)
            for i in range(count):
                images[i, 0, :, i % 6 : i % 6 + 2] = 120 + i
            return images, [i % 2 for i in range(count)]
    """,
    "architecture": """
        import torch

        @edm.register("architecture", "lab-net")
        class Net(torch.nn.Module):
            def __init__(self, resolution, channels, classes, augment_dim, *, width: int = 8, dropout: float = 0.0):
                super().__init__()
                self.enter = torch.nn.Conv2d(channels, width, 3, padding=1)
                self.told = torch.nn.Linear(1 + classes + augment_dim, width)
                self.leave = torch.nn.Conv2d(width, channels, 3, padding=1)

            def forward(self, x, c_noise, class_labels, augment_labels):
                told = [c_noise[:, None], *(one for one in (class_labels, augment_labels) if one is not None)]
                shift = self.told(torch.cat(told, dim=1))[:, :, None, None]
                return self.leave(torch.relu(self.enter(x) + shift))
    """,
    "preconditioning": """
        @edm.register("preconditioning", "lab-v")
        class Velocity:
            def __init__(self, sigma_data: float = 0.5, scale: float = 0.25):
                self.sigma_data, self.scale = sigma_data, scale

            def coefficients(self, sigma):
                total = sigma**2 + self.sigma_data**2
                c_out = sigma * self.sigma_data * total.rsqrt()
                return self.sigma_data**2 / total, c_out, total.rsqrt(), self.scale * sigma.log()
    """,
    "loss": """
        import torch

        @edm.register("loss", "lab-logistic")
        class Logistic:
            def __init__(self, centre: float = -1.2, width: float = 0.7, sigma_data: float = 0.5):
                self.centre, self.width, self.sigma_data = centre, width, sigma_data

            def sigma(self, u):
                return (self.centre + self.width * torch.logit(u)).exp()

            def density(self, sigma):
                z = (sigma.log() - self.centre) / self.width
                return torch.sigmoid(z) * torch.sigmoid(-z) / self.width

            def weight(self, sigma):
                return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
    """,
    "augmentation": """
        import torch
        from edm.design import draws

        @edm.register("augmentation", "lab-shift", width=1)
        def shift(images, seeds, probability, *, pixels: int = 1):
            on = draws.uniform(seeds, 0, 1, draws.AUGMENT)[:, :1] < probability
            return torch.where(on[:, :, None, None], images.roll(pixels, dims=3), images), on.to(images.dtype)
    """,
    "optimizer": """
        import torch

        @edm.register("optimizer", "lab-adamw")
        def adamw(parameters, *, decay: float = 0.1):
            return torch.optim.AdamW(parameters, lr=0.0, weight_decay=decay)
    """,
    "lr_schedule": """
        @edm.register("lr_schedule", "lab-linear")
        def linear(learning_rate, seen, total, *, floor: float = 0.1):
            return learning_rate * (1 - (1 - floor) * seen / total)
    """,
    "schedule": """
        @edm.register("schedule", "lab-power")
        class Power:
            def __init__(self, sigma_min, sigma_max, power: float = 2.0):
                self.power = power

            def sigma(self, t):
                return t**self.power

            def sigma_dot(self, t):
                return self.power * t ** (self.power - 1)

            def inverse(self, sigma):
                return sigma ** (1 / self.power)
    """,
    "scaling": """
        @edm.register("scaling", "lab-unit")
        def scaling(schedule, t, *, size: float = 1.0):
            sigma = schedule.sigma(t)
            s = (1 + size * sigma**2).rsqrt()
            return s, -size * sigma * schedule.sigma_dot(t) * s**3
    """,
    "discretization": """
        import torch

        @edm.register("discretization", "lab-steps", sigma_range=(0.01, 50.0))
        def steps(number, sigma_min, sigma_max, *, power: float = 1.0):
            t = torch.arange(number, dtype=torch.float64) / max(number - 1, 1)
            return sigma_max * (sigma_min / sigma_max) ** t**power
    """,
    "solver": """
        from itertools import pairwise

        @edm.register("solver", "lab-euler")
        def euler(denoise, latents, sigmas, noise, *, eta: float = 1.0, S_noise: float = 1.0):
            x = latents * sigmas[0]
            for now, after in pairwise(sigmas):
                x = x + eta * (after - now) * (x - denoise(x, now)) / now
            return x
    """,
    "features": """
        import torch

        @edm.register("features", "lab-moments", meaning="mean and deviation of each row")
        class Moments(torch.nn.Module):
            def __init__(self, weights):
                super().__init__()

            def forward(self, images):
                rows = images.float().flatten(1, 2) / 255
                return torch.cat((rows.mean(dim=2), rows.std(dim=2)), dim=1)
    """,
    "metric": """
        import torch

        @edm.register("metric", "lab-nearest", higher=False, meaning="median distance to the nearest training image")
        def nearest(features, reference, *, quantile: float = 0.5):
            return torch.cdist(features, reference).min(dim=1).values.quantile(quantile).item()
    """,
}


PARTS["study"] = PAGE["study"]


def write_every(folder, change=lambda raw: None):
    """The files of all parts below ``folder``, and a params.yaml whose only experiment, ``every``, uses each."""
    (folder / "my_lab").mkdir()
    for kind, text in PARTS.items():
        write_part(folder, kind, text)
    raw = {
        "plugins": [f"my_lab/{kind}.py" for kind in PARTS],
        "run": ["every"],
        "datasets": {"bars": {"source": "lab-bars", "source.count": 48, "resolution": 8, "channels": 1, "classes": 2}},
        "experiments": {"every": EXPERIMENT},
    }
    change(raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def write_part(folder, kind, text):
    (folder / "my_lab" / f"{kind}.py").write_text(file_of(text))


def file_of(*texts):
    """The text of a plugin file with these parts."""
    whole = "".join(map(textwrap.dedent, texts))
    return whole if "\nimport edm\n" in whole else f"import edm\n{whole}"


EXPERIMENT = {
    "dataset": "bars",
    "features": "lab-moments",
    "base": {"conditional": True, "duration": 1.28e-3, "batch_size": 32, "level_samples": 16, "dropout": 0.0},
    "columns": {
        "my": {"architecture": "lab-net", "architecture.width": 12, "loss": "lab-logistic", "loss.width": 0.8,
               "preconditioning": "lab-v", "preconditioning.scale": 0.3},
    },
    "ladder": {
        "A": {"augmentation": "lab-shift", "augmentation.pixels": 2, "augment": 0.5, "optimizer": "lab-adamw",
              "optimizer.decay": 0.05, "lr_schedule": "lab-linear", "lr_schedule.floor": 0.2},
    },
    "sampling": {"images": 40, "block": 40},
    "grids": {
        "mine": {"models": ["my-A"], "solver": "lab-euler", "solver.eta": [0.8, 0.9], "num_steps": 4,
                 "discretization": "lab-steps", "discretization.power": 1.2},
        "paths": {"models": ["my-A"], "solver": "heun", "schedule": "lab-power", "schedule.power": 1.5,
                  "scaling": "lab-unit", "scaling.size": 0.5, "num_steps": 4},
    },
    "metrics": ["lab-nearest"],
    "metric_settings": {"lab-nearest": {"quantile": 0.9}},
    "analyses": {"error": {"kind": "my-error", "models": ["my-A"], "study.levels": [0.2, 1.0, 5.0]}},
    "tables": {
        "mine": {"kind": "samplers", "title": "Mine", "nfe": "of the best", "metrics": ["lab-nearest"],
                 "rows": {"my steps": "mine", "my paths": "paths"}},
        "study": {"kind": "study", "title": "A study", "of": {"my model": "my-A:error"}, "columns": ["largest"]},
    },
    "figures": {"error": {"kind": "study", "of": ["my-A:error"], "x": "sigma", "y": "error"}},
}  # fmt: skip
