# tfx in a container, for NVIDIA GPUs (torch's default wheels bring their CUDA) or for CPUs alone:
#
#   docker build -t tfx .
#   docker build -t tfx:cpu --build-arg TORCH_INDEX=URL .     URL: pytorch.org's index of CPU wheels
#
#   docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/work" tfx train mine.toml
#   docker run --rm -it --user "$(id -u)" -v "$PWD:/work" tfx:cpu doctor
#
# The host needs no CUDA: a driver and NVIDIA's container toolkit.
FROM python:3.11-slim AS build

ARG TORCH_INDEX=""
RUN python -m venv /opt/tfx
ENV PATH=/opt/tfx/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --no-deps -c constraints.txt --index-url "$TORCH_INDEX" torch; \
    fi
COPY pyproject.toml setup.py README.md LICENSE ./
COPY core core
COPY tfx_cli tfx_cli
COPY transformerics transformerics
COPY presets presets
RUN pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim

# OpenMP, which torch and scikit-learn load. Debian keeps one version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/tfx /opt/tfx
# A home for the caches of numba and matplotlib, whoever --user says it is.
ENV PATH=/opt/tfx/bin:$PATH \
    HOME=/tmp \
    LC_ALL=C.UTF-8 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /work
ENTRYPOINT ["tfx"]
CMD ["--help"]
