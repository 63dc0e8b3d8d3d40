"""An OCI build context: a Containerfile that any builder takes, for a server without root and without a writable disk.

What it copies is in the folder; only the packages of `requirements.txt` come from outside. It needs `/tmp` to be
writable, and nothing else.
"""

from __future__ import annotations

from typing import Final

from noa_serving.packaging.bento_folder import PORT, WHEELS_FOLDER

BASE_IMAGE: Final = "docker.io/library/python:{python}-slim-bookworm"
USER: Final = 10001

IGNORED: Final = """kubernetes/
kserve/
README.md
__pycache__/
"""


def containerfile(*, python: str, base: str | None = None) -> str:
    """Return the Containerfile; `python` is the version that the packages were chosen for, e.g. `3.11`.

    `base` is an image with that Python, best with a digest; by default the official one.
    """
    image = base or BASE_IMAGE.format(python=python)
    probe = (
        f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}/v2/health/ready', timeout=2).read()"
    )
    return f"""FROM {image} AS packages
COPY requirements.txt /package/
COPY {WHEELS_FOLDER}/ /package/{WHEELS_FOLDER}/
WORKDIR /package
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --no-compile -r requirements.txt \\
    && /opt/venv/bin/python -m compileall -q /opt/venv/lib

FROM {image}
RUN groupadd --system --gid {USER} noa && useradd --system --no-create-home --uid {USER} --gid {USER} noa
COPY --from=packages /opt/venv /opt/venv
COPY service.py noa.toml bentofile.yaml /package/
COPY model/ /package/model/
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \\
    PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 \\
    BENTOML_HOME=/tmp/bentoml \\
    BENTOML_DO_NOT_TRACK=True
WORKDIR /package
USER {USER}:{USER}
EXPOSE {PORT}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "{probe}"]
ENTRYPOINT ["bentoml", "serve", "/package", "--host", "0.0.0.0", "--port", "{PORT}"]
"""
