# syntax=docker/dockerfile:1
# docker build --target cpu -t ssclass .          docker build --target gpu -t ssclass:gpu .
# docker run -v photos:/photos -v model:/model ssclass evaluate /photos --model /model      (needs no network)

# By digest (3.12.14 of September 2026), so that nobody changes it under us; .github/dependabot.yml keeps it current.
FROM python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254 AS base
# git: the workspace; make: the same verbs as on a laptop; libgomp1: scikit-learn's and TensorFlow's threads
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make libgomp1 openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 ssclass
WORKDIR /app

# The packages: the same lock and the same steps as `make install`; this layer changes only when those do.
FROM base AS packages
COPY Makefile pyproject.toml hatch_build.py README.md LICENSE requirements.lock requirements-install.lock ./
COPY scripts scripts
COPY ssclass/__init__.py ssclass/__init__.py
RUN make install && rm -rf .cache

FROM packages AS packages-gpu
COPY requirements-gpu.lock ./
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --requirement requirements-gpu.lock

# What both images add to their packages.
FROM base AS run
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    SSCLASS_HOME=/home/ssclass/.cache/ssclass
COPY --chown=root:root . .

FROM run AS gpu
COPY --from=packages-gpu /app/.venv /app/.venv
USER 10001
WORKDIR /home/ssclass
ENTRYPOINT ["ssclass"]
CMD ["--help"]

# Last, so that it is what `docker build .` makes.
FROM run AS cpu
COPY --from=packages /app/.venv /app/.venv
USER 10001
WORKDIR /home/ssclass
ENTRYPOINT ["ssclass"]
CMD ["--help"]
