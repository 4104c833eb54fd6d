# A server for a run: docker build -t apd . && docker run -p 8000:8000 -v "$PWD/runs/photos:/srv/run:ro" apd
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 apd
WORKDIR /opt/apd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# The index adds the small build of torch for CPUs; for a GPU leave it out.
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[serve]'

USER apd
ENV HF_HOME=/home/apd/.cache/huggingface
VOLUME /srv/run
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["apd", "serve", "/srv/run", "--host", "0.0.0.0", "--port", "8000"]
