# One target per tier, and three around them:
#   docker build --target gateway|tokenizer|model .
#   init    the model image with another start: fetches a model into /models, then ends
#   all     the three tiers in one container, `tokenwire up`; what is built when no target is named
#   dev     JupyterLab with everything that serves, for the project's folder mounted at /work
# Only model, init, all and dev carry torch. TORCH_INDEX chooses its build: https://download.pytorch.org/whl/cpu for the
# CPU, https://download.pytorch.org/whl/cu130 (or none: PyPI's own) for CUDA, whose libraries come as packages with it; then
# RUNTIME_PACKAGES="gcc libc6-dev" too: Triton compiles the start of each of its kernels.
# A package index of one's own: docker build --secret id=pip,src=$HOME/.config/pip/pip.conf .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT=/src/constraints.txt \
    PIP_CONFIG_FILE=/run/secrets/pip PIP_PROGRESS_BAR=off
RUN python -m venv /opt/tokenwire
ENV PATH=/opt/tokenwire/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml scripts/requirements.py ./

# The project itself, with the kernels for CPUs; without a compiler it would serve through torch alone.
FROM build AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip pip wheel --no-deps --wheel-dir /wheel .

# The dependencies of each tier come before its code, so that a change of code installs nothing again.
FROM build AS build-gateway
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip \
    python requirements.py server gateway tracing > /tmp/wanted.txt && pip install -r /tmp/wanted.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl && pip uninstall --yes setuptools pip

FROM build AS build-tokenizer
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip \
    python requirements.py server tokenizer tracing > /tmp/wanted.txt && pip install -r /tmp/wanted.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl && pip uninstall --yes setuptools pip

FROM build AS torch
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip \
    sed -i "s/^torch==.*/torch==$TORCH_VERSION/" constraints.txt \
 && pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$TORCH_VERSION"
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip \
    python requirements.py server model gpu convert tracing > /tmp/wanted.txt && pip install -r /tmp/wanted.txt

FROM torch AS build-model
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps --no-index /wheel/*.whl

FROM torch AS build-all
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip \
    python requirements.py server gateway tokenizer certs > /tmp/wanted.txt && pip install -r /tmp/wanted.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps --no-index /wheel/*.whl

FROM build-all AS build-dev
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip \
    python requirements.py bench notebook > /tmp/wanted.txt && pip install -r /tmp/wanted.txt

FROM ${PYTHON_IMAGE} AS runtime
# tini is process 1: it passes signals on and takes in what a tier's own children leave behind.
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
 && groupadd --gid 10001 tokenwire && useradd --uid 10001 --gid tokenwire --create-home tokenwire \
 && install -d -o tokenwire -g tokenwire /models
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Tokenwire" \
      org.opencontainers.image.description="A language-model server whose native tongue is gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# USER besides the user, because a container may run as somebody whom /etc/passwd does not know.
# hadolint ignore=DL3064
ENV PATH=/opt/tokenwire/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 USER=tokenwire \
    TOKENWIRE_HOME=/models HF_HOME=/models/huggingface
USER 10001:10001
WORKDIR /home/tokenwire

FROM runtime AS gateway
COPY --from=build-gateway /opt/tokenwire /opt/tokenwire
EXPOSE 50051 8080 9464
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50051"]
ENTRYPOINT ["tini", "--", "python", "-m", "gateway"]

FROM runtime AS tokenizer
# An encoding is some hundred small allocations; glibc keeps seven of a size at hand.
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=512
COPY --from=build-tokenizer /opt/tokenwire /opt/tokenwire
EXPOSE 50052 9465
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["tini", "--", "python", "-m", "tokenizer_svc"]

FROM runtime AS runtime-torch
ARG RUNTIME_PACKAGES=
USER 0
# hadolint ignore=DL4006
RUN [ -z "$RUNTIME_PACKAGES" ] || { apt-get update \
 && echo "$RUNTIME_PACKAGES" | xargs apt-get install --yes --no-install-recommends && rm -rf /var/lib/apt/lists/* /var/cache/apt/*; }
USER 10001:10001
# The root may be read-only; what Triton and torch compile goes where all temporary files go.
ENV TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor

FROM runtime-torch AS model
COPY --from=build-model /opt/tokenwire /opt/tokenwire
EXPOSE 50053 9466
# Loading a large model takes minutes; a check that fails during the start period does not count.
HEALTHCHECK --interval=3s --timeout=5s --start-period=600s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50053"]
ENTRYPOINT ["tini", "--", "python", "-m", "model_svc"]

FROM model AS init
COPY --chmod=755 deploy/docker/as-owner /usr/local/bin/
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "as-owner", "/models", "tokenwire", "models", "pull"]

FROM runtime-torch AS dev
COPY --from=build-dev /opt/tokenwire /opt/tokenwire
# The mounted project goes before the installed one. Whoever runs it may write its home.
ENV PYTHONPATH=/work HOME=/tmp
WORKDIR /work
EXPOSE 8888
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8888/api', timeout=4)"]
ENTRYPOINT ["tini", "--", "jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]

FROM runtime-torch AS all
COPY --from=build-all /opt/tokenwire /opt/tokenwire
# Others can reach a container's port, so callers need a key: one of their own making, or the one in the log.
# hadolint ignore=DL3064
ENV TOKENWIRE_GATEWAY_HOST=0.0.0.0 TOKENWIRE_UP_MAKE_KEY=true
EXPOSE 50051 8080
HEALTHCHECK --interval=3s --timeout=5s --start-period=600s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50051"]
ENTRYPOINT ["tini", "--", "tokenwire", "up"]
