"""Packaging: an endpoint as a folder that runs anywhere, pinned to its version, without a registry.

The folder is a project of BentoML (`bentoml serve`, `build`, `containerize`), an OCI build context and manifests for
Kubernetes. `make_package` plans what is in it, `Package.write` writes it. What is packaged is started by
`bento_packed`, which is imported inside of the Bento only.
"""

from noa_serving.packaging.kubernetes import Deploying
from noa_serving.packaging.package import Package, make_package

__all__ = ["Deploying", "Package", "make_package"]
