"""The worker: pixels, models and labels. All of it goes into the container image.

What the other packages may import is in `wuwan_worker.shared`. Importing it loads no image or model
library; the client side depends on that.
"""

__version__ = "0.1.0"
