# One image for everything: the course in JupyterLab, and the dispatcher, workers and trainer of lesson 09.
#
#     docker build -t feeding-images .
#     docker run --rm -p 8888:8888 feeding-images        the course; open the address that it prints
#     docker compose -f deploy/compose.yaml up           a cluster on this machine
#
# All of them run from the repository's lock, so that no two machines of a cluster can have two versions of TensorFlow.
#
# The base image is pinned by the digest of its index, which covers all architectures: python 3.11.16, as it was read
# from public Dockerfiles that pin the same one. To renew it: docker buildx imagetools inspect python:3.11-slim
FROM python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# The folders that are mounted belong to the user already here: a new volume takes its owner from the image.
RUN useradd --create-home --uid 1000 reader \
    && mkdir -p /course/data /journal \
    && chown -R reader:reader /course /journal

WORKDIR /course

# The lock first: its layer, 2 GB, is built again only when it has changed.
COPY requirements.txt ./
RUN grep -v '^-e' requirements.txt > /tmp/lock.txt \
    && pip install -r /tmp/lock.txt \
    && rm /tmp/lock.txt

COPY --chown=reader:reader . .
RUN pip install --no-deps --editable .

USER reader

# JupyterLab; dispatcher; worker.
EXPOSE 8888 5050 5051
STOPSIGNAL SIGTERM
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "notebooks"]
