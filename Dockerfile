# One target per tier: docker build --target gateway|tokenizer|model .
# Only `model` carries torch. TORCH_INDEX chooses its build: https://download.pytorch.org/whl/cpu for the CPU,
# https://download.pytorch.org/whl/cu130 (or none: PyPI's own) for CUDA.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT=/src/constraints.txt
RUN python -m venv /opt/tokenwire
ENV PATH=/opt/tokenwire/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
COPY pyproject.toml scripts/requirements.py ./

# The dependencies of each tier come before its code, so that a change of code installs nothing again.
FROM build AS build-gateway
RUN python requirements.py server gateway tracing > /tmp/wanted.txt && pip install -r /tmp/wanted.txt
COPY . .
RUN pip install --no-deps .

FROM build AS build-tokenizer
RUN python requirements.py server tokenizer tracing > /tmp/wanted.txt && pip install -r /tmp/wanted.txt
COPY . .
RUN pip install --no-deps .

FROM build AS build-model
# Compiles the kernels for CPUs; without it the image serves through torch alone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN sed -i "s/^torch==.*/torch==$TORCH_VERSION/" constraints.txt \
 && pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==$TORCH_VERSION"
RUN python requirements.py server model gpu convert tracing > /tmp/wanted.txt && pip install -r /tmp/wanted.txt
COPY . .
RUN pip install --no-deps .

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 tokenwire && useradd --uid 10001 --gid tokenwire --create-home tokenwire \
 && install -d -o tokenwire -g tokenwire /models
# hadolint ignore=DL3064
ENV PATH=/opt/tokenwire/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOKENWIRE_HOME=/models
USER 10001:10001
WORKDIR /home/tokenwire

FROM runtime AS gateway
COPY --from=build-gateway /opt/tokenwire /opt/tokenwire
EXPOSE 50051 8080 9464
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50051"]
ENTRYPOINT ["python", "-m", "gateway"]

FROM runtime AS tokenizer
# An encoding is some hundred small allocations; glibc keeps seven of a size at hand.
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=512
COPY --from=build-tokenizer /opt/tokenwire /opt/tokenwire
EXPOSE 50052 9465
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["python", "-m", "tokenizer_svc"]

FROM runtime AS model
COPY --from=build-model /opt/tokenwire /opt/tokenwire
EXPOSE 50053 9466
# Loading a large model takes minutes; a check that fails during the start period does not count.
HEALTHCHECK --interval=3s --timeout=5s --start-period=600s \
    CMD ["tokenwire", "health", "--target", "127.0.0.1:50053"]
ENTRYPOINT ["python", "-m", "model_svc"]
