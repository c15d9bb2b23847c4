# A container with hfscale and what its recipes need:
#   docker build --tag hfscale .
#   docker run --rm --gpus all --volume "$PWD/runs:/work/runs" hfscale pretrain --config tiny_cpu
# PyTorch is the build that PyPI has, with CUDA. For one without, a quarter of the size, name PyTorch's index of
# CPU builds: docker build --build-arg TORCH_INDEX_URL=... --tag hfscale .
FROM python:3.11-slim

ARG TORCH_INDEX_URL=""
ARG EXTRAS="deepspeed,wandb,trl,export"
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 DS_BUILD_OPS=0

# torch.compile calls a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The largest layer first, so that a change of hfscale does not fetch it again.
COPY constraints.txt /src/
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} --constraint /src/constraints.txt torch

COPY pyproject.toml README.md LICENSE /src/
COPY hfscale /src/hfscale
COPY recipes /src/recipes
COPY accelerate_configs /src/accelerate_configs
RUN pip install --constraint /src/constraints.txt "/src[$EXTRAS]"

# Runs belong to a user without rights over the machine, and lie where a volume can be put.
RUN useradd --create-home --uid 1000 hfscale && mkdir /work && chown 1000 /work
USER 1000
WORKDIR /work
ENTRYPOINT ["hfscale"]
CMD ["--help"]
