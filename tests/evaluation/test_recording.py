"""What an evaluation logs to MLflow."""

from edm.evaluation.recording import numbers_of
from edm.metrics import INCEPTION


def test_the_error_of_a_distance_is_logged_beside_it_and_too_few_images_log_none():
    bar = {"features": 2048, "s": 0.03, "corrected": 1.9, "limit": 1.88, "without": [2.0] * 20, "prefixes": []}
    measured = {"images": 50_000, "nfe": 35, "distance": 2.0, "bar": bar, "more": {INCEPTION: 3.0, "pixels": 4.0},
                "more_bars": {INCEPTION: {**bar, "s": 0.05}, "pixels": {"features": 64}}}  # fmt: skip
    found = numbers_of(measured, "FD (digits-classifier)")
    assert found == {"FD": 2.0, "nfe": 35, "FID": 3.0, "FD_pixels": 4.0, "FD_s": 0.03, "FD_corrected": 1.9,
                     "FD_limit": 1.88, "FID_s": 0.05, "FID_corrected": 1.9, "FID_limit": 1.88}  # fmt: skip
    assert next(iter(found)) == "FD"
