"""The worker: pixels, models and labels. All of it goes into the container image.

Importing this package, `wuwan_worker.protocol` or `wuwan_worker.bundle` loads no image or
model library; the client side depends on that.
"""

__version__ = "0.1.0"
